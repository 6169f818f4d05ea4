"""Exchanges of sets of heads, any sets, on all pairs of a contrast."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.patching._exchange import Swap, Variant, patched_metrics
from refusal_nn.patching._recovery import effects

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured
    from refusal_nn.models import Model
    from refusal_nn.store import Recorder

Head = tuple[int, int]
"""(layer, head)."""

Evaluate = Callable[[Sequence[Sequence[Head]], str, "Recorder"], np.ndarray]
"""Sets of heads, what to call these exchanges, and where to keep them, to what each set moves
jointly, ``[pair, set]``."""

SETS_PER_BATCH = 64
"""Sets a batch covers: the grain of a resume."""


def head_name(head: Head) -> str:
    """``a5.h2``, as the graph of the residual stream names it."""
    return f"a{head[0]}.h{head[1]}"


def heads_in(model: Model, layers: Iterable[int]) -> list[Head]:
    """Every head of some blocks."""
    return [(layer, head) for layer in layers for head in range(model.n_heads)]


def of_heads(heads: Iterable[Head], positions: Sequence[int] | None = None) -> Variant:
    """The exchange of some heads' outputs, before the output projection mixes them.

    Parameters
    ----------
    heads : iterable of (layer, head)
    positions : sequence of int, optional
        From the end of the prompt; every token when None.

    Examples
    --------
    >>> from refusal_nn.patching import of_heads
    >>> of_heads([(5, 0), (5, 2)])
    (Swap(site='z', layer=5, positions=None, heads=(0, 2)),)
    """
    where = None if positions is None else tuple(positions)
    return tuple(
        Swap("z", layer, where, tuple(head for _, head in found))
        for layer, found in groupby(sorted(heads), key=lambda head: head[0])
    )


def heads_where(grid: xr.DataArray) -> list[Head]:
    """The heads of which a table ``(layer, head)`` says yes."""
    there = np.argwhere(grid.transpose("layer", "head").values)
    return [(int(grid["layer"][i]), int(head)) for i, head in there]


def laid_out(
    said: Mapping[Head, Any], otherwise: Any, layers: Sequence[int], n_heads: int
) -> np.ndarray:
    """What is said of some heads and, ``otherwise``, of all others, ``[layer, head]``."""
    rows = [[said.get((layer, head), otherwise) for head in range(n_heads)] for layer in layers]
    return np.array(rows, dtype=object if isinstance(otherwise, str) else None)


@dataclass(frozen=True)
class HeadExchanges:
    """Exchanges of sets of heads, each call a stage of its own.

    Attributes
    ----------
    positions : sequence of int or None
        Tokens whose head outputs are exchanged, from the end of the prompt; all when None.
    rows : int
        Rows (set, pair) a pass.
    recorder : Recorder
        Its stages are scratch: variable ``patched_metric`` over ``(head_set, prompt)``.
    """

    positions: Sequence[int] | None
    rows: int
    recorder: Recorder

    def moved(
        self,
        base: Measured,
        interchange: str,
        sets: Sequence[Sequence[Head]],
        stage: str,
        recorder: Recorder | None = None,
    ) -> np.ndarray:
        """What the exchange of each set moves, in the metric's unit.

        Parameters
        ----------
        base : Measured
        interchange : str
            ``sufficiency`` or ``necessity``.
        sets : sequence of sets of heads
            None empty.
        stage : str
        recorder : Recorder, optional
            Of a step of a loop, whose stage it is.

        Returns
        -------
        array, ``[pair, set]``
            Positive: towards the metric of the other prompt.
        """
        if not all(sets):
            raise RequestError("a set of heads to exchange is empty; name at least one head.")
        # sets that start at one block share passes
        by_start = np.argsort([min(layer for layer, _ in s) for s in sets], kind="stable")
        variants = [of_heads(sets[i], self.positions) for i in by_start]
        patched = patched_metrics(
            base,
            interchange,
            {"head_set": np.arange(len(sets))},
            ("head_set", SETS_PER_BATCH),
            lambda part: [[*g] for _, g in groupby(variants[part], key=lambda v: v[0].layer)],
            rows=(self.rows, min(len(sets), base.model.n_heads)),
            recorder=recorder or self.recorder,
            stage=stage,
        )
        # their order as given
        found = np.ascontiguousarray(patched.values[:, np.argsort(by_start)])
        return effects(base, found, interchange)

    def singles(
        self,
        base: Measured,
        interchanges: Sequence[str],
        layers: Sequence[int],
        stage: str = "heads",
    ) -> xr.DataArray:
        """What each head moves on its own, ``(prompt, interchange, layer, head)``."""
        sets = [[head] for head in heads_in(base.model, layers)]
        found = [self.moved(base, way, sets, f"{stage}_{way}") for way in interchanges]
        shape = (len(base), len(found), len(layers), base.model.n_heads)
        labels = {
            "interchange": np.array(list(interchanges), dtype=object),
            "layer": list(layers),
            "head": np.arange(base.model.n_heads),
        }
        return xr.DataArray(np.stack(found, axis=1).reshape(shape), labels, ("prompt", *labels))
