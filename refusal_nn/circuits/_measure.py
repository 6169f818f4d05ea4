"""The metric of many circuits on many pairs: one stage, several circuits a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.circuits._ablation import Ablation, ablated_runs
from refusal_nn.circuits._requests import bytes_per_row, circuits_request
from refusal_nn.errors import RequestError, WorkError
from refusal_nn.runs._batches import rows_per_pass
from refusal_nn.tracing import ListedPasses, Ref, Request, Results, forward_request, pad

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refusal_nn.attribution import EdgeGraph, Metric
    from refusal_nn.contrasts._align import AlignedPairs
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder

_PASS_BYTES = 1 << 30
_CIRCUITS_PER_BATCH = 64
_CIRCUITS_PER_PASS = 8


@dataclass(frozen=True)
class Bench:
    """What circuits are measured on: everything but the circuits.

    Attributes
    ----------
    model : Model
    graph : EdgeGraph
    pairs : Pairs
    aligned : AlignedPairs
    metric : Metric
    ablation : Ablation
    recorder : Recorder
    batch_size : int or None
        Rows of a pass; by the model's width and the memory of a row when None.
    """

    model: Model
    graph: EdgeGraph
    pairs: Pairs
    aligned: AlignedPairs
    metric: Metric
    ablation: Ablation
    recorder: Recorder
    batch_size: int | None = None

    @property
    def rows(self) -> int:
        """Rows of a pass."""
        if self.batch_size is not None:
            if self.batch_size < 1:
                raise RequestError(f"batch size must be at least 1, got {self.batch_size}.")
            return self.batch_size
        one = bytes_per_row(self.model, self.graph, max(self.aligned.lengths))
        return max(1, min(rows_per_pass(self.model), _PASS_BYTES // one))


def measure(
    bench: Bench, name: str, circuits: Sequence[NDArray[np.bool_]], labels: Sequence[str]
) -> NDArray[np.float64]:
    """The metric of each pair under each circuit, ``[circuit, pair]``, as a stage.

    Equal circuits are run once.

    Parameters
    ----------
    bench : Bench
    name : str
        Of the stage.
    circuits : sequence of array, ``[src, dst]`` bool
    labels : sequence of str
        One a circuit, for the stage's coordinate.

    Raises
    ------
    WorkError
        If a run gives a metric that is not finite.
    """
    first: dict[bytes, int] = {}
    at = [first.setdefault(np.packbits(kept).tobytes(), len(first)) for kept in circuits]
    where = [at.index(i) for i in range(len(first))]
    kept = np.stack([circuits[i] for i in where])
    names = [labels[i] for i in where]
    n = len(bench.pairs)
    circuits_a_pass = min(len(kept), _CIRCUITS_PER_PASS, bench.rows)
    pairs_a_pass = min(n, max(1, bench.rows // circuits_a_pass))
    circuits_a_pass = min(len(kept), max(1, bench.rows // pairs_a_pass))
    per_batch = circuits_a_pass * max(1, _CIRCUITS_PER_BATCH // circuits_a_pass)
    batches = [
        {
            "circuit": slice(c, min(c + per_batch, len(kept))),
            "prompt": slice(p, min(p + pairs_a_pass, n)),
        }
        for c in range(0, len(kept), per_batch)
        for p in range(0, n, pairs_a_pass)
    ]
    labelled = bench.pairs.to_dataset().coords
    template = xr.Dataset(
        {"circuit_metric": (("circuit", "prompt"), np.full((len(kept), n), np.nan))},
        coords={
            "circuit": np.array(names, dtype=object),
            **{str(k): v for k, v in labelled.items()},
        },
    )

    def requests(i: int) -> list[Request]:
        chosen, rows = batches[i]["circuit"], batches[i]["prompt"]
        clean = pad(bench.aligned.clean_rows[rows], bench.model.pad_token)
        before, ablated = ablated_runs(bench.model, bench.ablation, bench.aligned, rows)
        # only kl compares with the clean run; it is held for it below
        args: dict[str, Any] = {"metric": bench.metric.plain(), "clean_rows": 0}
        if bench.metric.kind == "kl":
            reference = bench.metric.readout(bench.model, keep=True)
            args["clean"] = Ref(len(before), "readout")
            before = [*before, forward_request(bench.model, clean, [reference])]
        return before + [
            circuits_request(
                bench.model,
                bench.graph,
                clean,
                kept[start : min(start + circuits_a_pass, chosen.stop)],
                bench.metric,
                ablated=ablated,
                after=("metric", args),
            )
            for start in range(chosen.start, chosen.stop, circuits_a_pass)
        ]

    def collect(i: int, results: Results) -> xr.Dataset:
        part = template.isel(batches[i])
        values = np.concatenate([r["metric"].numpy() for r in results if "metric" in r])
        if not np.isfinite(values).all():
            raise WorkError(
                f"model {bench.model.name!r} gave a metric that is not finite in a circuit's run; "
                "load it in another --dtype."
            )
        shape = part["circuit_metric"].shape
        return part.assign(circuit_metric=(("circuit", "prompt"), values.reshape(shape)))

    passes = ListedPasses(bench.model, requests, collect)
    found = bench.recorder.stage(name, template, batches, passes)["circuit_metric"].values
    return np.asarray(found, dtype=np.float64)[at]
