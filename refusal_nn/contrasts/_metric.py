"""What is attributed: a number that a run gives each prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from refusal_nn.contrasts._refusal_tokens import discover_refusal_tokens
from refusal_nn.errors import RequestError
from refusal_nn.runs import recordable
from refusal_nn.tracing import Capture

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder

KINDS = ("refusal-log-odds", "logit-difference", "projection", "kl")
"""Names of the metrics."""


@recordable
@dataclass(frozen=True, eq=False)
class Metric:
    """A metric of the last prompt token; made by one of the constructors below.

    Attributes
    ----------
    kind : str
        One of :data:`KINDS`.
    tokens, against : tuple of int
        Token ids that count for and, in a logit difference, against.
    direction : array ``[d_model]`` or None
        Unit vector of a projection.
    layer : int or None
        The residual stream that is projected: the input of that block, the last one's output when
        None.
    """

    kind: str
    tokens: tuple[int, ...] = ()
    against: tuple[int, ...] = ()
    direction: np.ndarray | None = None
    layer: int | None = None

    @classmethod
    def refusal_log_odds(cls, tokens: Sequence[int]) -> Metric:
        """Log-odds that the next token is one of the refusal tokens, in nats; higher: more refusal.

        References
        ----------
        Arditi et al. 2024, section 2.3.
        """
        return cls("refusal-log-odds", _ids(tokens, "refusal-log-odds"))

    @classmethod
    def logit_difference(cls, tokens: Sequence[int], against: Sequence[int]) -> Metric:
        """Mean logit of ``tokens`` minus mean logit of ``against``, in nats."""
        first, second = _ids(tokens, "logit-difference"), _ids(against, "logit-difference")
        if both := sorted(set(first) & set(second)):
            raise RequestError(
                f"token {both[0]} is on both sides of the logit difference; remove it."
            )
        return cls("logit-difference", first, second)

    @classmethod
    def projection(cls, direction: ArrayLike, layer: int | None = None) -> Metric:
        """Projection on a direction, normalised, in residual stream units; higher: further along it.

        With a ``layer`` it is the input of that block that is read. The reader ``logits`` then stands
        for that reading, and writers from that layer on have no effect.
        """
        vector = np.asarray(direction, dtype=np.float64)
        norm = float(np.linalg.norm(vector)) if vector.ndim == 1 else 0.0
        if not norm or not np.isfinite(norm):
            raise RequestError(
                "the direction to project on must be one finite vector that is not zero, got shape "
                f"{vector.shape}."
            )
        return cls("projection", direction=vector / norm, layer=layer)

    @classmethod
    def kl(cls) -> Metric:
        """KL divergence of the next-token distribution from the clean run's, in nats, at least 0.

        Its gradient at the clean run is zero, so it needs a method that looks elsewhere, too.
        """
        return cls("kl")

    @property
    def unit(self) -> str:
        """Unit of the value."""
        return "residual stream units" if self.kind == "projection" else "nats"

    @property
    def signed(self) -> bool:
        """Whether harmful prompts must have more of it; other metrics may point either way."""
        return self.kind == "refusal-log-odds"

    @property
    def relative(self) -> bool:
        """Whether it compares with the harmful prompt's unpatched run."""
        return self.kind == "kl"

    def check(self, model: Model) -> None:
        """Refuse a metric that does not fit a model.

        Raises
        ------
        RequestError
            If a token is outside the vocabulary, or the direction or layer is not one of the model.
        """
        if bad := [t for t in (*self.tokens, *self.against) if not 0 <= t < model.arch.vocab_size]:
            raise RequestError(
                f"metric token {bad[0]} is outside the vocabulary of {model.name!r} "
                f"(0..{model.arch.vocab_size - 1})."
            )
        if self.direction is not None and self.direction.shape != (model.d_model,):
            raise RequestError(
                f"the direction has {self.direction.size} numbers, but the residual stream of "
                f"{model.name!r} has {model.d_model}."
            )
        if self.layer is not None and not 1 <= self.layer < model.n_layers:
            raise RequestError(
                f"a projection at layer {self.layer} is not possible: it reads the input of a block "
                f"from 1 to {model.n_layers - 1}, or the last output when no layer is given."
            )

    def readout(self, model: Model, *, live: bool = False, keep: bool = False) -> Capture:
        """The capture ``readout`` that the metric is computed from."""
        where = None if live else (-1,)
        if self.kind != "projection":
            return Capture("readout", "logits", positions=(-1,), live=live, keep=keep)
        # a block's output rather than the next one's input: a live input is a branch of its own
        last = self.reads_after(model) - 1
        return Capture("readout", "resid_post", last, where, live=live, keep=keep)

    def reads_after(self, model: Model) -> int:
        """How many blocks come before what is read."""
        return model.n_layers if self.layer is None else self.layer

    def plain(self) -> dict[str, Any]:
        """The specification that ships."""
        direction = None if self.direction is None else torch.from_numpy(self.direction)
        return {
            "kind": self.kind,
            "tokens": list(self.tokens),
            "a": list(self.tokens),
            "b": list(self.against),
            "direction": direction,
        }

    def to_attrs(self) -> dict[str, Any]:
        """What identifies it, as plain data for attributes and fingerprints."""
        direction = None if self.direction is None else self.direction.tolist()
        return {
            "metric": self.kind,
            "metric_unit": self.unit,
            "metric_tokens": list(self.tokens),
            "metric_against": list(self.against),
            "metric_direction": direction,
            "metric_layer": self.layer,
        }

    @classmethod
    def from_attrs(cls, attrs: Any) -> Metric:
        """The metric that :meth:`to_attrs` described.

        Raises
        ------
        RequestError
            If they describe none.
        """
        kind, direction, layer = (attrs.get(f"metric{k}") for k in ("", "_direction", "_layer"))
        if not isinstance(kind, str) or kind not in KINDS:
            raise RequestError(
                f"the attributes describe no metric: it is none of {', '.join(KINDS)}."
            )
        tokens, against = (_plain_ids(attrs.get(f"metric_{s}")) for s in ("tokens", "against"))
        wanted = {"refusal-log-odds": (True, False), "logit-difference": (True, True)}
        if (bool(tokens), bool(against)) != wanted.get(kind, (False, False)):
            raise RequestError(f"the attributes describe no metric: {kind} with other tokens.")
        if (direction is None) == (kind == "projection"):
            raise RequestError(f"the attributes describe no metric: {kind} with no such direction.")
        if layer is not None and (isinstance(layer, bool) or not isinstance(layer, Integral)):
            raise RequestError("the attributes describe no metric: its layer is no whole number.")
        vector = None if direction is None else _plain_vector(direction)
        return cls(kind, tokens, against, vector, None if layer is None else int(layer))


def resolve_metric(
    model: Model,
    metric: Metric | None,
    pairs: Pairs,
    *,
    recorder: Recorder | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Metric:
    """The metric given, or the log-odds of refusal tokens found from the model's own refusals.

    Parameters
    ----------
    model : Model
    metric : Metric or None
    pairs : Pairs
        What tokens are found on, and so not pairs that anything is tested on.
    recorder, batch_size, seed
        As :func:`discover_refusal_tokens`.

    Raises
    ------
    RequestError
        If the metric does not fit the model.
    WorkError
        If the model refuses none of the harmful prompts.
    """
    if metric is None:
        tokens = discover_refusal_tokens(
            model, pairs.prompts(), batch_size=batch_size, seed=seed, recorder=recorder
        )
        metric = Metric.refusal_log_odds(tokens)
    metric.check(model)
    return metric


def _plain_ids(tokens: Any) -> tuple[int, ...]:
    """Token ids as attributes hold them, which a stranger may have written."""
    given = tokens.tolist() if isinstance(tokens, np.ndarray) else tokens
    if not isinstance(given, list | tuple):
        raise RequestError("the attributes describe no metric: its tokens are no list.")
    if any(
        isinstance(t, bool) or not isinstance(t, int | np.integer) or not 0 <= t < 1 << 31
        for t in given
    ):
        raise RequestError("the attributes describe no metric: its tokens are no token ids.")
    if len(set(given)) < len(given):
        raise RequestError("the attributes describe no metric: it names a token twice.")
    return tuple(map(int, given))


def _plain_vector(direction: Any) -> np.ndarray:
    try:
        vector = np.asarray(direction, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        vector = np.empty(0)
    if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all() or not vector.any():
        raise RequestError(
            "the attributes describe no metric: its direction is no vector of finite numbers."
        )
    return vector


def _ids(tokens: Sequence[int], kind: str) -> tuple[int, ...]:
    # a text is a sequence, too, of which each character would be a token
    given: list[Any] = [*tokens]
    if odd := [t for t in given if isinstance(t, bool) or not isinstance(t, Integral)]:
        raise RequestError(
            f"metric {kind} takes token ids, not {odd[0]!r}; refusal_nn.directions.parse_tokens turns "
            "token texts into ids."
        )
    found = tuple(int(t) for t in given)
    if twice := [t for k, t in enumerate(found) if t in found[:k]]:
        raise RequestError(f"metric {kind} names token {twice[0]} twice; name each token once.")
    if not found:
        raise RequestError(f"metric {kind} needs at least one token on each side; name them.")
    return found
