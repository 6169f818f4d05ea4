"""The unpatched runs of pairs: what patching moves between, and whether it is there at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.contrasts._align import AlignedPairs, align
from refusal_nn.contrasts._told_apart import check_told_apart
from refusal_nn.errors import PromptError, RequestError
from refusal_nn.patching._measured import REFUSAL, measured
from refusal_nn.runs._batches import batches_of
from refusal_nn.tracing import ListedPasses, Request, Results, pad

if TYPE_CHECKING:
    from refusal_nn.attribution import Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder


@dataclass(frozen=True)
class Baseline:
    """Pairs that are used, with the metric of their unpatched runs.

    Attributes
    ----------
    pairs : Pairs
        Those kept.
    aligned : AlignedPairs
    clean, corrupted : array, ``[pair]``
        Metric of the harmful and the harmless prompt.
    dropped : tuple of str
        Ids of pairs left out because the model does not tell them apart as labelled.
    """

    pairs: Pairs
    aligned: AlignedPairs
    clean: np.ndarray
    corrupted: np.ndarray
    dropped: tuple[str, ...]

    @property
    def difference(self) -> np.ndarray:
        """What there is to move, ``[pair]``: clean minus corrupted."""
        return self.clean - self.corrupted

    def spread(self, n: int) -> Baseline:
        """At most ``n`` of the pairs, evenly spaced in their order."""
        rows = np.unique(np.linspace(0, len(self.pairs) - 1, min(n, len(self.pairs))).astype(int))
        return Baseline(
            self.pairs[rows],
            self.aligned.take(rows.tolist()),
            self.clean[rows],
            self.corrupted[rows],
            self.dropped,
        )

    def start_of(self, interchange: str) -> np.ndarray:
        """Metric of the run that is patched, ``[pair]``."""
        return self.corrupted if interchange == "sufficiency" else self.clean

    def labels(self) -> dict[str, Any]:
        """The coordinates of the pairs over dim ``prompt``."""
        return {str(k): v for k, v in self.pairs.to_dataset().coords.items()}

    def variables(self) -> dict[str, Any]:
        """Texts and unpatched metrics over dim ``prompt``."""
        table = self.pairs.to_dataset()
        return {
            "clean_text": table["clean_text"],
            "corrupted_text": table["corrupted_text"],
            "clean_metric": ("prompt", self.clean),
            "corrupted_metric": ("prompt", self.corrupted),
        }


def baseline(
    model: Model,
    pairs: Pairs,
    metric: Metric,
    *,
    screen: bool,
    rows: int,
    recorder: Recorder,
    stage: str = "baseline",
) -> Baseline:
    """Measure both prompts of every pair.

    Parameters
    ----------
    model : Model
    pairs : Pairs
    metric : Metric
    screen : bool
        Keep only pairs whose harmful prompt the model refuses and whose harmless one it answers, by
        the sign of the refusal log-odds. Other metrics have no such sign, and nothing is left out.
    rows : int
        Rows a pass.
    recorder : Recorder
    stage : str

    Raises
    ------
    PromptError
        If pairs are not aligned, screening leaves none, or the mean difference between the prompts
        of a pair cannot be told from 0, or has the wrong sign.
    """
    aligned = align(model, pairs)
    size = max(1, rows // 2)
    n = len(pairs)
    template = xr.Dataset(
        {name: ("prompt", np.full(n, np.nan)) for name in ("clean_metric", "corrupted_metric")},
        coords={str(k): v for k, v in pairs.to_dataset().coords.items()},
    )
    batches = batches_of(n, size, "prompt")

    def requests(i: int) -> list[Request]:
        region = batches[i]["prompt"]
        return [unpatched(model, aligned, range(n)[region], metric)]

    def collect(i: int, results: Results) -> xr.Dataset:
        clean, corrupted = results[0]["metric"].double().numpy().reshape(2, -1)
        part = template.isel(batches[i])
        return part.assign(clean_metric=("prompt", clean), corrupted_metric=("prompt", corrupted))

    found = recorder.stage(stage, template, batches, ListedPasses(model, requests, collect))
    clean, corrupted = found["clean_metric"].values, found["corrupted_metric"].values
    kept = np.ones(n, dtype=bool)
    if screen and metric.kind == REFUSAL:
        kept = (clean > 0) & (corrupted < 0)
        if not kept.any():
            raise PromptError(
                f"model {model.name!r} treats no pair of {pairs.name!r} as labelled: of {n} pairs it "
                f"refuses {int((clean > 0).sum())} harmful and {int((corrupted > 0).sum())} harmless "
                "prompts, so there is no refusal to move from one to the other; use pairs it tells "
                "apart, other --refusal-tokens, or --no-screen."
            )
    rows_kept = np.flatnonzero(kept)
    out = Baseline(
        pairs[rows_kept],
        aligned.take(rows_kept.tolist()),
        clean[kept],
        corrupted[kept],
        tuple(pairs.pair_id[~kept]),
    )
    check_told_apart(out.pairs, out.clean, out.corrupted, metric)
    return out


def unpatched(model: Model, aligned: AlignedPairs, group: range, metric: Metric) -> Request:
    """A pass of the harmful prompts, then the harmless ones; it returns ``metric`` ``[row]``."""
    rows = [side[k] for side in (aligned.clean_rows, aligned.corrupted_rows) for k in group]
    return measured(model, metric, pad(rows, model.pad_token), clean_rows=len(group))


def blocks(model: Model, metric: Metric, layers: Sequence[int] | None) -> list[int]:
    """Blocks to patch, ascending: those asked for, or all that the metric can see.

    Raises
    ------
    RequestError
        If a block is not there, is named twice, or comes after what the metric reads.
    """
    depth = metric.reads_after(model)
    chosen = sorted(range(depth) if layers is None else (int(layer) for layer in layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth or len(set(chosen)) < len(chosen):
        raise RequestError(
            f"layers {list(layers or ())} cannot be patched: name each once, in 0..{depth - 1} "
            f"(metric {metric.kind} on model {model.name!r})."
        )
    return chosen
