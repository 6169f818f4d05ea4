"""The smallest circuit that is faithful enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._discover import choose, supporting
from refusal_nn.circuits._evaluate import ABLATED, MODEL, bench_of
from refusal_nn.circuits._faithfulness import check_difference
from refusal_nn.circuits._measure import Bench, measure
from refusal_nn.errors import RequestError, WorkError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refusal_nn.attribution import EdgeGraph, Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder

_RATIO = 1.25
_AT_ONCE = 16


@dataclass(frozen=True)
class Smallest:
    """A circuit that is faithful enough, and the sizes that were tried.

    Attributes
    ----------
    circuit : Circuit
    faithfulness : float
        On the pairs it was chosen on.
    tried : xarray.Dataset
        ``edges_kept`` and ``faithfulness`` over ``circuit``, sizes ascending, and ``circuit_metric``
        ``(circuit, prompt)``.
    """

    circuit: Circuit
    faithfulness: float
    tried: xr.Dataset


def smallest(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    metric: Metric,
    *,
    target: float = 0.9,
    rule: str = "top",
    ranking: str = "absolute",
    ablation: str = "resample",
    discovery: Pairs | None = None,
    batch_size: int | None = None,
    recorder: Recorder | None = None,
) -> Smallest:
    """The smallest circuit, by one ranking of edges, whose faithfulness reaches a target.

    Sizes a quarter apart are measured first, from small to large; between the first that reaches the
    target and the one before it every size is tried, in rounds that narrow the gap. Faithfulness need
    not grow with size, so a smaller circuit between two sizes of the first round that both miss the
    target is not found.

    Parameters
    ----------
    model : Model
    circuit : Circuit
        Its scores rank the edges; which of them it keeps does not matter.
    pairs : Pairs
        Not the pairs it is evaluated on later: a size is chosen on them.
    metric : Metric
    target : float
        Of the point estimate of faithfulness.
    rule, ranking
        See :func:`refusal_nn.circuits.discover`; rule ``top`` or ``greedy``.
    ablation, discovery, batch_size, recorder
        See :func:`refusal_nn.circuits.evaluate`.

    Returns
    -------
    Smallest

    Raises
    ------
    RequestError
        If the target is not in (0, 1], or the circuit has no scores or is of another model.
    WorkError
        If no size reaches the target.
    """
    if not 0 < target <= 1:
        raise RequestError(f"the target faithfulness is {target}; give one in (0, 1].")
    if circuit.scores is None:
        raise RequestError("the circuit has no scores to make circuits of other sizes from.")
    if rule not in ("top", "greedy"):
        raise RequestError(f"a size is chosen for rule top or greedy, not {rule!r}.")
    circuit.check(model)
    bench = bench_of(
        model,
        pairs,
        metric,
        ablation=ablation,
        discovery=discovery,
        batch_size=batch_size,
        recorder=recorder,
    )
    search = _Search(bench, supporting(circuit.scores, metric.kind), rule, ranking)
    low, high = 0, None
    for n in _sizes(bench.graph):
        if search.faithfulness[n] >= target:
            high = n
            break
        low = n
    if high is None:
        raise WorkError(
            f"no circuit reaches faithfulness {target} on {pairs.name!r}: the best of the sizes tried "
            f"has {max(search.faithfulness.values()):.3f}."
        )
    while high - low > 1:
        step = max(1, (high - low) // (_AT_ONCE + 1))
        between = list(range(low + step, high, step))[: 2 * _AT_ONCE]
        search.run(between)
        reached = [n for n in between if search.faithfulness[n] >= target]
        low = max([low, *(n for n in between if n < (reached or [high])[0])])
        high = reached[0] if reached else high
    found = Circuit(
        bench.graph,
        search.kept[high],
        circuit.scores,
        {**circuit.attrs, "rule": rule, "ranking": ranking, "requested": high, "target": target},
    )
    return Smallest(found, search.faithfulness[high], search.table())


class _Search:
    """Circuits of several sizes and their faithfulness."""

    def __init__(self, bench: Bench, worth: NDArray[np.float64], rule: str, ranking: str) -> None:
        self.bench, self.worth, self.rule, self.ranking = bench, worth, rule, ranking
        self.kept: dict[int, NDArray[np.bool_]] = {}
        self.metric: dict[int, NDArray[np.float64]] = {}
        self.faithfulness: dict[int, float] = {}
        self.rounds = 0
        mask = bench.graph.mask
        ends = measure(bench, "ends", [mask, np.zeros_like(mask)], [MODEL, ABLATED])
        self.whole, self.nothing = ends
        check_difference(self.whole, self.nothing, cluster=bench.pairs.family)
        self.run(_sizes(bench.graph))

    def run(self, sizes: list[int]) -> None:
        """Measure the circuits of these sizes, as one stage."""
        for n in sizes:
            self.kept[n] = choose(
                self.bench.graph, self.worth, n=n, rule=self.rule, ranking=self.ranking
            )
        name = f"sizes{self.rounds}"
        found = measure(
            self.bench, name, [self.kept[n] for n in sizes], [f"top {n}" for n in sizes]
        )
        self.rounds += 1
        total = (self.whole - self.nothing).mean()
        for n, values in zip(sizes, found, strict=True):
            self.metric[n] = values
            self.faithfulness[n] = float((values - self.nothing).mean() / total)

    def table(self) -> xr.Dataset:
        """What was tried, by size."""
        sizes = sorted(self.metric)
        labels: dict[str, Any] = {
            str(k): v for k, v in self.bench.pairs.to_dataset().coords.items()
        }
        return xr.Dataset(
            {
                "edges_kept": ("circuit", [int(self.kept[n].sum()) for n in sizes]),
                "faithfulness": ("circuit", [self.faithfulness[n] for n in sizes]),
                "circuit_metric": (
                    ("circuit", "prompt"),
                    np.stack([self.metric[n] for n in sizes]),
                ),
            },
            coords={"circuit": np.array([f"top {n}" for n in sizes], dtype=object), **labels},
        )


def _sizes(graph: EdgeGraph) -> list[int]:
    """Sizes a quarter apart, up to every edge."""
    sizes, n = [], 1.0
    while n < graph.n_edges:
        sizes.append(int(n))
        n = max(n + 1, n * _RATIO)
    return [*sizes, graph.n_edges]
