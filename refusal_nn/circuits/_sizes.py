"""The smallest circuit that is faithful enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._discover import choose, supporting
from refusal_nn.circuits._evaluate import ABLATED, MODEL, bench_of, check_unseen
from refusal_nn.circuits._faithfulness import check_difference, faithfulness
from refusal_nn.circuits._measure import Bench, measure
from refusal_nn.errors import PromptError, RequestError, WorkError
from refusal_nn.stats._clusters import checked_confidence

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
    faithfulness, low : float
        On the pairs it was chosen on, and the lower end of its interval there.
    tried : xarray.Dataset
        ``edges_kept`` and ``faithfulness`` with ``_low`` and ``_high`` over ``circuit``, sizes
        ascending, and ``circuit_metric`` ``(circuit, prompt)``.
    """

    circuit: Circuit
    faithfulness: float
    low: float
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
    confidence: float | None = 0.95,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> Smallest:
    """The smallest circuit, by one ranking of edges, whose faithfulness reaches a target.

    It is the lower end of its interval that must reach the target: the first size of many whose
    estimate does is one that these pairs flatter, and misses the target on new pairs about as often
    as not.

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
        Of faithfulness.
    rule, ranking
        See :func:`refusal_nn.circuits.discover`; rule ``top`` or ``greedy``.
    confidence : float, optional
        Of the interval (paired BCa bootstrap of families of pairs). None: the estimate itself must
        reach the target.
    ablation, discovery, batch_size, seed, recorder
        See :func:`refusal_nn.circuits.evaluate`.

    Returns
    -------
    Smallest

    Raises
    ------
    RequestError
        If the target is not in (0, 1], or the circuit has no scores or is of another model.
    PromptError
        If the pairs are of one family, which has no interval.
    WorkError
        If no size reaches the target.
    """
    if not 0 < target <= 1:
        raise RequestError(f"the target faithfulness is {target}; give one in (0, 1].")
    if circuit.scores is None:
        raise RequestError("the circuit has no scores to make circuits of other sizes from.")
    if rule not in ("top", "greedy"):
        raise RequestError(f"a size is chosen for rule top or greedy, not {rule!r}.")
    if confidence is not None:
        checked_confidence(confidence)
        if len(set(pairs.family.tolist())) < 2:
            raise PromptError(
                f"{pairs.name!r} has pairs of one family only, so faithfulness has no interval whose "
                "lower end could reach the target; give pairs of more families, or confidence None to "
                "go by the estimate."
            )
    circuit.check(model)
    check_unseen(circuit, pairs)
    bench = bench_of(
        model,
        pairs,
        metric,
        ablation=ablation,
        discovery=discovery,
        batch_size=batch_size,
        recorder=recorder,
    )
    worth = supporting(circuit.scores, metric.kind)
    search = _Search(bench, worth, rule, ranking, confidence, seed)
    low, high = 0, None
    for n in _sizes(bench.graph):
        if search.reached[n] >= target:
            high = n
            break
        low = n
    if high is None:
        best = max(search.reached, key=lambda n: search.reached[n])
        bound = "" if confidence is None else f", at least {search.reached[best]:.3f}"
        raise WorkError(
            f"no circuit reaches faithfulness {target} on {pairs.name!r}: the best of the sizes tried "
            f"has {search.found[best][0]:.3f}{bound}."
        )
    while high - low > 1:
        step = max(1, (high - low) // (_AT_ONCE + 1))
        between = list(range(low + step, high, step))[: 2 * _AT_ONCE]
        search.run(between)
        reached = [n for n in between if search.reached[n] >= target]
        low = max([low, *(n for n in between if n < (reached or [high])[0])])
        high = reached[0] if reached else high
    found = Circuit(
        bench.graph,
        search.kept[high],
        circuit.scores,
        {**circuit.attrs, "rule": rule, "ranking": ranking, "requested": high, "target": target},
    )
    value, low_end, _ = search.found[high]
    return Smallest(found, value, low_end, search.table())


class _Search:
    """Circuits of several sizes and their faithfulness."""

    def __init__(
        self,
        bench: Bench,
        worth: NDArray[np.float64],
        rule: str,
        ranking: str,
        confidence: float | None,
        seed: int,
    ) -> None:
        self.bench, self.worth, self.rule, self.ranking = bench, worth, rule, ranking
        self.by_estimate = confidence is None
        self.options = {
            "cluster": bench.pairs.family,
            "confidence": 0.95 if confidence is None else confidence,
            "seed": seed,
        }
        self.kept: dict[int, NDArray[np.bool_]] = {}
        self.metric: dict[int, NDArray[np.float64]] = {}
        self.found: dict[int, tuple[float, float, float]] = {}
        self.rounds = 0
        mask = bench.graph.mask
        ends = measure(bench, "ends", [mask, np.zeros_like(mask)], [MODEL, ABLATED])
        self.whole, self.nothing = ends
        check_difference(
            self.whole,
            self.nothing,
            positive=bench.metric.signed,
            cluster=bench.pairs.family,
        )
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
        by_size = faithfulness(found.T, self.whole, self.nothing, **self.options)
        ends = np.stack([by_size.value, by_size.low, by_size.high], axis=-1)
        for n, values, three in zip(sizes, found, ends.tolist(), strict=True):
            self.metric[n] = values
            self.found[n] = tuple(three)

    @property
    def reached(self) -> dict[int, float]:
        """What must reach the target, by size: the lower end of the interval, or the estimate."""
        return {n: three[0 if self.by_estimate else 1] for n, three in self.found.items()}

    def table(self) -> xr.Dataset:
        """What was tried, by size."""
        sizes = sorted(self.metric)
        labels = self.bench.labels()
        return xr.Dataset(
            {
                "edges_kept": ("circuit", [int(self.kept[n].sum()) for n in sizes]),
                **{
                    f"faithfulness{end}": ("circuit", [self.found[n][k] for n in sizes])
                    for k, end in enumerate(("", "_low", "_high"))
                },
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
