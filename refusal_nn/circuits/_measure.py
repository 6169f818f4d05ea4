"""The metric of many circuits on many pairs: one stage, several circuits a pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.circuits._ablation import ABLATIONS, means_of
from refusal_nn.circuits._requests import Means, ask_sources, bytes_per_row, circuit_edits
from refusal_nn.contrasts import Contrast
from refusal_nn.contrasts._measured import measured, metrics_of
from refusal_nn.errors import PromptError, RequestError, WorkError
from refusal_nn.models._graph import EdgeGraph
from refusal_nn.prompts import overlaps
from refusal_nn.runs._batches import batches_of, grid_of, rows_asked, rows_per_pass
from refusal_nn.store import MemoryRecorder
from refusal_nn.tracing import Answers, Handle, Passes, Work

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from refusal_nn.contrasts import Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect

MODEL, ABLATED = "model", "ablated"
_PASS_BYTES = 1 << 30
_CIRCUITS_PER_BATCH = 64
_CIRCUITS_PER_PASS = 8


class Bench(Contrast):
    """A contrast whose clean runs can be cut down to circuits.

    Parameters
    ----------
    model : Model
    pairs : Pairs
    metric : Metric
    ablation : {"resample", "mean", "zero"}
        What edges outside a circuit carry.
    discovery : Pairs, optional
        What the circuits were found on; needed for means.
    batch_size : int, optional
        Rows of a pass; by the model's width and the memory of a row when None.
    recorder : Recorder, optional
        Default in memory.

    Attributes
    ----------
    graph : EdgeGraph
    means : dict or None
        What :func:`means_of` found, for mean ablation.
    ablation, recorder, rows
        As given, or made of it.

    Raises
    ------
    PromptError
        If the pairs share a prompt or family with the discovery pairs, are not aligned, or are
        longer than the discovery prompts of a mean ablation.
    RequestError
        If the metric or the ablation does not fit.
    """

    def __init__(
        self,
        model: Model,
        pairs: Pairs,
        metric: Metric,
        ablation: str = "resample",
        discovery: Pairs | None = None,
        batch_size: int | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        if discovery is not None:
            check_apart(discovery, pairs)
        super().__init__(model, pairs, metric)
        if ablation not in ABLATIONS:
            raise RequestError(
                f"unknown ablation {ablation!r}; ablations are {', '.join(ABLATIONS)}."
            )
        self.graph = EdgeGraph.of(model.arch)
        self.ablation = ablation
        self.recorder = recorder if recorder is not None else MemoryRecorder()
        self.means: Means | None = None
        longest = max(self.aligned.lengths)
        if ablation == "mean":
            self.means = means_of(model, discovery, batch_size, self.recorder)
            if longest > (reach := self.means["input"][0].shape[1]):
                raise PromptError(
                    f"a pair has {longest} tokens, but the longest discovery prompt has {reach}, so "
                    "there is no mean value at its first positions; use discovery pairs that are as "
                    "long, or another ablation."
                )
        self.rows = rows_asked(model, batch_size)
        if batch_size is None:
            one = bytes_per_row(model, self.graph, longest)
            self.rows = max(1, min(rows_per_pass(model), _PASS_BYTES // one))

    @property
    def ends(self) -> dict[str, NDArray[np.bool_]]:
        """What the metric of a circuit lies between: that of the model, and of every edge ablated."""
        return {MODEL: self.graph.mask, ABLATED: np.zeros_like(self.graph.mask)}

    def carried(self, work: Work, rows: slice) -> Handle | Means | None:
        """What pairs' excluded edges carry; asks for the run that holds it."""
        if self.ablation == "resample":
            return ask_sources(work, self.batch("corrupted", rows))
        return self.means

    def measure(self, name: str, circuits: ArrayLike, labels: Sequence[str]) -> NDArray[np.float64]:
        """The metric of each pair under each circuit, ``[..., pair]``, as a stage.

        Equal circuits are run once.

        Parameters
        ----------
        name : str
            Of the stage.
        circuits : array, ``[..., src, dst]`` bool
        labels : sequence of str
            One a circuit, for the stage's coordinate.

        Raises
        ------
        WorkError
            If a run gives a metric that is not finite.
        """
        every = np.asarray(circuits, dtype=bool)
        flat = every.reshape(-1, *self.graph.mask.shape)
        first: dict[bytes, int] = {}
        at = [first.setdefault(np.packbits(kept).tobytes(), len(first)) for kept in flat]
        where = [at.index(i) for i in range(len(first))]
        found = self._measured(name, flat[where], [labels[i] for i in where])
        return found[at].reshape(*every.shape[:-2], len(self))

    def _measured(
        self, name: str, kept: NDArray[np.bool_], names: Sequence[str]
    ) -> NDArray[np.float64]:
        """The metric ``[circuit, pair]`` under circuits of which no two are equal."""
        n = len(self)
        circuits_a_pass = min(len(kept), _CIRCUITS_PER_PASS, self.rows)
        pairs_a_pass = min(n, max(1, self.rows // circuits_a_pass))
        circuits_a_pass = min(len(kept), max(1, self.rows // pairs_a_pass))
        per_batch = circuits_a_pass * max(1, _CIRCUITS_PER_BATCH // circuits_a_pass)
        batches = grid_of(
            batches_of(len(kept), per_batch, "circuit"), batches_of(n, pairs_a_pass, "prompt")
        )
        template = xr.Dataset(
            {"circuit_metric": (("circuit", "prompt"), np.full((len(kept), n), np.nan))},
            coords={"circuit": np.array(names, dtype=object), **self.labels()},
        )

        def batch(i: int, work: Work) -> Collect:
            chosen, rows = kept[batches[i]["circuit"]], batches[i]["prompt"]
            ablated = self.carried(work, rows)
            prompts = self.batch("clean", rows)
            clean = work.forward(prompts, self.held()) if self.metric.relative else None
            depth = self.metric.reads_after(self.model)
            asked = []
            for start in range(0, len(chosen), circuits_a_pass):
                some = chosen[start : start + circuits_a_pass]
                edits = circuit_edits(self.model, self.graph, prompts, some, depth, ablated=ablated)
                many = prompts.repeat(len(some))
                asked.append(measured(work, self.metric, many, edits, clean=clean, clean_rows=0))

            def collect(answers: Answers) -> xr.Dataset:
                part = template.isel(batches[i])
                values = metrics_of(answers, asked).reshape(part["circuit_metric"].shape)
                if not np.isfinite(values).all():
                    raise WorkError(
                        f"model {self.model.name!r} gave a metric that is not finite in a circuit's "
                        "run; load it in another --dtype."
                    )
                return part.assign(circuit_metric=(("circuit", "prompt"), values))

            return collect

        found = self.recorder.stage(name, template, batches, Passes(self.model, batch))
        return np.asarray(found["circuit_metric"].values, dtype=np.float64)


def check_apart(seen: Pairs, pairs: Pairs) -> None:
    """Refuse pairs that share something with those a circuit was found, or its size chosen, on.

    Raises
    ------
    PromptError
        If they share a prompt or family.
    """
    if found := overlaps(seen.prompts(), pairs.prompts()):
        raise PromptError(
            f"{found[0]}, so what a circuit does on them says nothing of new ones; give pairs of another "
            "split or other families."
        )
