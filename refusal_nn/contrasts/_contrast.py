"""A model on contrast pairs under a metric: what every analysis of pairs starts from."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import xarray as xr

from refusal_nn.contrasts._align import AlignedPairs, align
from refusal_nn.contrasts._measured import measured, metrics_of
from refusal_nn.contrasts._told_apart import check_told_apart
from refusal_nn.errors import PromptError
from refusal_nn.runs._batches import batches_of, prompt_labels
from refusal_nn.tracing import Answers, Batch, Capture, Passes, Work, pad

if TYPE_CHECKING:
    from refusal_nn.contrasts._metric import Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect

SIDES = ("clean", "corrupted")
"""The two prompts of a pair: the harmful one, its harmless partner."""


class Contrast:
    """A model, pairs of prompts aligned token by token, and the metric that is to tell them apart.

    Parameters
    ----------
    model : Model
    pairs : Pairs
    metric : Metric
    aligned : AlignedPairs, optional
        The pairs' tokens, where they are known; else they are aligned.

    Attributes
    ----------
    model, pairs, metric, aligned
        As given, or made of it.

    Raises
    ------
    RequestError
        If the metric does not fit the model.
    PromptError
        If the pairs are not aligned; see :func:`align`.

    Examples
    --------
    >>> from refusal_nn import load_model
    >>> from refusal_nn.contrasts import Metric
    >>> from refusal_nn.prompts import load_pairs
    >>> from refusal_nn.store import MemoryRecorder
    >>> pairs = load_pairs("tiny-pairs").test
    >>> contrast = Contrast(load_model("tiny-refuser"), pairs, Metric.logit_difference([5], [6]))
    >>> both = contrast.spread(4).measured(MemoryRecorder(), rows=32, check=False)
    >>> both.difference.shape
    (4,)
    """

    def __init__(
        self, model: Model, pairs: Pairs, metric: Metric, *, aligned: AlignedPairs | None = None
    ) -> None:
        metric.check(model)
        self.model = model
        self.pairs = pairs
        self.metric = metric
        self.aligned = align(model, pairs) if aligned is None else aligned

    def __len__(self) -> int:
        return len(self.pairs)

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Some of the pairs, in the order given."""
        kept = np.asarray(rows, dtype=int)
        taken = copy(self)
        taken.pairs = self.pairs[kept]
        taken.aligned = self.aligned.take(kept.tolist())
        return taken

    def spread(self, n: int) -> Self:
        """At most ``n`` of the pairs, evenly spaced in their order."""
        return self.take(np.unique(np.linspace(0, len(self) - 1, min(n, len(self))).astype(int)))

    def batch(self, side: str, rows: slice | Sequence[int] = slice(None)) -> Batch:
        """The prompts of one side of some pairs, padded.

        Parameters
        ----------
        side : {"clean", "corrupted"}
        rows : slice or sequence of int
            Pairs.
        """
        tokens = getattr(self.aligned, f"{side}_rows")
        chosen = tokens[rows] if isinstance(rows, slice) else [tokens[k] for k in rows]
        return pad(chosen, self.model.pad_token)

    def held(self) -> list[Capture]:
        """What the clean run holds for the metric of later passes: nothing, or its readout."""
        return [self.metric.readout(self.model, keep=True)] if self.metric.relative else []

    def labels(self) -> dict[str, Any]:
        """The coordinates of the pairs over dim ``prompt``."""
        return prompt_labels(self.pairs)

    def variables(self) -> dict[str, Any]:
        """The texts of the pairs over dim ``prompt``."""
        table = self.pairs.to_dataset()
        return {f"{side}_text": table[f"{side}_text"] for side in SIDES}

    def attrs(self) -> dict[str, Any]:
        """What identifies the model, the pairs and the metric, as plain data."""
        return {
            **self.model.identity(),
            **self.pairs.to_dataset().attrs,
            **self.metric.to_attrs(),
        }

    def measured(
        self,
        recorder: Recorder,
        *,
        rows: int,
        stage: str = "metrics",
        screen: bool = False,
        check: bool = True,
    ) -> Measured:
        """Measure both prompts of every pair, unpatched.

        Parameters
        ----------
        recorder : Recorder
        rows : int
            Rows a pass; a pair has two.
        stage : str
        screen : bool
            Keep only pairs whose harmful prompt the model refuses and whose harmless one it answers,
            by the sign of the refusal log-odds. Other metrics have no such sign, and nothing is left
            out.
        check : bool
            Refuse pairs that the metric does not tell apart.

        Raises
        ------
        PromptError
            If screening leaves no pair, or the mean difference between the prompts of a pair cannot
            be told from 0 or, with the refusal log-odds, is negative.
        """
        names = [f"{side}_metric" for side in SIDES]
        template = xr.Dataset(
            {name: ("prompt", np.full(len(self), np.nan)) for name in names}, self.labels()
        )
        batches = batches_of(len(self), max(1, rows // 2), "prompt")

        def batch(i: int, work: Work) -> Collect:
            some = batches[i]["prompt"]
            prompts = [*self.aligned.clean_rows[some], *self.aligned.corrupted_rows[some]]
            asked = measured(
                work, self.metric, pad(prompts, self.model.pad_token), clean_rows=len(prompts) // 2
            )

            def collect(answers: Answers) -> xr.Dataset:
                found = metrics_of(answers, [asked]).reshape(2, -1)
                values = dict(zip(names, (("prompt", side) for side in found), strict=True))
                return template.isel(batches[i]).assign(values)

            return collect

        found = recorder.stage(stage, template, batches, Passes(self.model, batch))
        clean, corrupted = (found[name].values for name in names)
        both = Measured(self, clean, corrupted)
        if screen:
            both = both.screened()
        if check:
            both.check_told_apart()
        return both


class Measured(Contrast):
    """A contrast with the metric of its unpatched runs.

    Parameters
    ----------
    contrast : Contrast
    clean, corrupted : array, ``[pair]``
        Metric of the harmful and the harmless prompt.
    dropped : tuple of str
        Ids of pairs left out because the model does not tell them apart as labelled.

    Attributes
    ----------
    clean, corrupted, dropped
        As given.
    """

    def __init__(
        self,
        contrast: Contrast,
        clean: np.ndarray,
        corrupted: np.ndarray,
        dropped: tuple[str, ...] = (),
    ) -> None:
        super().__init__(contrast.model, contrast.pairs, contrast.metric, aligned=contrast.aligned)
        self.clean = np.asarray(clean)
        self.corrupted = np.asarray(corrupted)
        self.dropped = dropped

    @property
    def difference(self) -> np.ndarray:
        """What there is to move, ``[pair]``: clean minus corrupted."""
        return self.clean - self.corrupted

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Some of the pairs, in the order given."""
        kept = np.asarray(rows, dtype=int)
        taken = super().take(kept)
        taken.clean, taken.corrupted = self.clean[kept], self.corrupted[kept]
        return taken

    def screened(self) -> Measured:
        """The pairs that the model treats as labelled, by the sign of the refusal log-odds.

        Raises
        ------
        PromptError
            If there are none.
        """
        if not self.metric.signed:
            return self
        refused, answered = self.clean > 0, self.corrupted < 0
        kept = refused & answered
        if not kept.any():
            raise PromptError(
                f"model {self.model.name!r} treats no pair of {self.pairs.name!r} as labelled: of "
                f"{len(self)} pairs it refuses {int(refused.sum())} harmful and "
                f"{int((self.corrupted > 0).sum())} harmless prompts, so there is no refusal to move "
                "from one to the other; use pairs it tells apart, other --refusal-tokens, or "
                "--no-screen."
            )
        out = self.take(np.flatnonzero(kept))
        out.dropped = tuple(self.pairs.pair_id[~kept])
        return out

    def check_told_apart(self) -> None:
        """Refuse pairs whose two prompts the metric does not tell apart; see :func:`Contrast.measured`.

        Raises
        ------
        PromptError
        """
        check_told_apart(self.pairs, self.clean, self.corrupted, self.metric)

    def variables(self) -> dict[str, Any]:
        """Texts and unpatched metrics over dim ``prompt``."""
        metrics = {f"{side}_metric": ("prompt", getattr(self, side)) for side in SIDES}
        return super().variables() | metrics
