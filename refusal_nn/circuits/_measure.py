"""The metric of many circuits on many pairs: one stage, several circuits a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.circuits._ablation import ablated_run
from refusal_nn.circuits._requests import ask_circuits, bytes_per_row
from refusal_nn.contrasts import Contrast
from refusal_nn.contrasts._measured import metrics_of
from refusal_nn.errors import WorkError
from refusal_nn.models._graph import EdgeGraph
from refusal_nn.runs._batches import batches_of, grid_of, rows_asked, rows_per_pass
from refusal_nn.store import MemoryRecorder
from refusal_nn.tracing import Answers, Passes, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refusal_nn.circuits._ablation import Ablation
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect

_PASS_BYTES = 1 << 30
_CIRCUITS_PER_BATCH = 64
_CIRCUITS_PER_PASS = 8


class Bench(Contrast):
    """A contrast whose clean runs can be cut down to circuits.

    Parameters
    ----------
    contrast : Contrast
    ablation : Ablation
        What edges outside a circuit carry.
    recorder : Recorder, optional
        Default in memory.
    batch_size : int, optional
        Rows of a pass; by the model's width and the memory of a row when None.

    Attributes
    ----------
    graph : EdgeGraph
    ablation, recorder, rows
        As given, or made of it.
    """

    def __init__(
        self,
        contrast: Contrast,
        ablation: Ablation,
        *,
        recorder: Recorder | None = None,
        batch_size: int | None = None,
    ) -> None:
        super().__init__(contrast.model, contrast.pairs, contrast.metric, aligned=contrast.aligned)
        self.graph = EdgeGraph.of(self.model.arch)
        self.ablation = ablation
        self.recorder = recorder if recorder is not None else MemoryRecorder()
        if batch_size is None:
            one = bytes_per_row(self.model, self.graph, max(self.aligned.lengths))
            self.rows = max(1, min(rows_per_pass(self.model), _PASS_BYTES // one))
        else:
            self.rows = rows_asked(self.model, batch_size)


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
    n = len(bench)
    circuits_a_pass = min(len(kept), _CIRCUITS_PER_PASS, bench.rows)
    pairs_a_pass = min(n, max(1, bench.rows // circuits_a_pass))
    circuits_a_pass = min(len(kept), max(1, bench.rows // pairs_a_pass))
    per_batch = circuits_a_pass * max(1, _CIRCUITS_PER_BATCH // circuits_a_pass)
    batches = grid_of(
        batches_of(len(kept), per_batch, "circuit"), batches_of(n, pairs_a_pass, "prompt")
    )
    template = xr.Dataset(
        {"circuit_metric": (("circuit", "prompt"), np.full((len(kept), n), np.nan))},
        coords={"circuit": np.array(names, dtype=object), **bench.labels()},
    )

    def batch(i: int, work: Work) -> Collect:
        chosen, rows = batches[i]["circuit"], batches[i]["prompt"]
        ablated = ablated_run(work, bench, bench.ablation, rows)
        clean = bench.batch("clean", rows)
        args: dict[str, Any] = {"metric": bench.metric.plain(), "clean_rows": 0}
        if bench.metric.relative:
            args["clean"] = work.forward(clean, bench.held()).held("readout")
        asked = [
            ask_circuits(
                work,
                bench.graph,
                clean,
                kept[start : min(start + circuits_a_pass, chosen.stop)],
                bench.metric,
                ablated=ablated,
                after=("metric", args),
            )
            for start in range(chosen.start, chosen.stop, circuits_a_pass)
        ]

        def collect(answers: Answers) -> xr.Dataset:
            part = template.isel(batches[i])
            values = metrics_of(answers, asked)
            if not np.isfinite(values).all():
                raise WorkError(
                    f"model {bench.model.name!r} gave a metric that is not finite in a circuit's run; "
                    "load it in another --dtype."
                )
            shape = part["circuit_metric"].shape
            return part.assign(circuit_metric=(("circuit", "prompt"), values.reshape(shape)))

        return collect

    found = bench.recorder.stage(name, template, batches, Passes(bench.model, batch))
    return np.asarray(found["circuit_metric"].values, dtype=np.float64)[at]
