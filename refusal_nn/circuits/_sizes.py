"""The smallest circuit that is faithful enough."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._discover import choose, supporting
from refusal_nn.circuits._faithfulness import Scale
from refusal_nn.circuits._measure import Bench
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
    circuit.check(model, pairs)
    bench = Bench(model, pairs, metric, ablation, discovery, batch_size, recorder)
    scale = Scale(
        *bench.measure("ends", [*bench.ends.values()], [*bench.ends]),
        positive=metric.signed,
        cluster=pairs.family,
        confidence=0.95 if confidence is None else confidence,
        seed=seed,
    )
    graph, worth = bench.graph, supporting(circuit.scores, metric.kind)
    tried: dict[int, _Tried] = {}
    low, high, sizes = 0, graph.n_edges + 1, _sizes(graph)
    rounds = count()
    while sizes:
        kept = [choose(graph, worth, n=n, rule=rule, ranking=ranking) for n in sizes]
        found = bench.measure(f"sizes{next(rounds)}", kept, [f"top {n}" for n in sizes])
        by_size = scale.faithfulness(found)
        ends = np.stack([by_size.value, by_size.low, by_size.high], axis=-1).tolist()
        tried |= {n: _Tried(*one) for n, *one in zip(sizes, kept, found, ends, strict=True)}
        reached = {n: one.ends[confidence is not None] for n, one in tried.items()}
        high = min([high, *(n for n in sizes if reached[n] >= target)])
        low = max([low, *(n for n in sizes if n < high)])
        if high > graph.n_edges:
            best = max(reached, key=lambda n: reached[n])
            bound = "" if confidence is None else f", at least {reached[best]:.3f}"
            raise WorkError(
                f"no circuit reaches faithfulness {target} on {pairs.name!r}: the best of the sizes tried "
                f"has {tried[best].ends[0]:.3f}{bound}."
            )
        step = max(1, (high - low) // (_AT_ONCE + 1))
        sizes = list(range(low + step, high, step))[: 2 * _AT_ONCE]
    attrs = {"rule": rule, "ranking": ranking, "requested": high, "target": target}
    smaller = Circuit(graph, tried[high].kept, circuit.scores, {**circuit.attrs, **attrs})
    return Smallest(smaller, *tried[high].ends[:2], _table(bench, tried))


@dataclass(frozen=True)
class _Tried:
    """A circuit of some size, its metric ``[pair]``, and its faithfulness with its interval's ends."""

    kept: NDArray[np.bool_]
    metric: NDArray[np.float64]
    ends: tuple[float, float, float]


def _table(bench: Bench, tried: dict[int, _Tried]) -> xr.Dataset:
    """What was tried, by size."""
    sizes = sorted(tried)
    rows = [tried[n] for n in sizes]
    ends = np.array([row.ends for row in rows]).T
    names = ("faithfulness", "faithfulness_low", "faithfulness_high")
    return xr.Dataset(
        {
            "edges_kept": ("circuit", [int(row.kept.sum()) for row in rows]),
            **{name: ("circuit", end) for name, end in zip(names, ends, strict=True)},
            "circuit_metric": (("circuit", "prompt"), np.stack([row.metric for row in rows])),
        },
        coords={
            "circuit": np.array([f"top {n}" for n in sizes], dtype=object),
            **bench.labels(),
        },
    )


def _sizes(graph: EdgeGraph) -> list[int]:
    """Sizes a quarter apart, up to every edge."""
    sizes, n = [], 1.0
    while n < graph.n_edges:
        sizes.append(int(n))
        n = max(n + 1, n * _RATIO)
    return [*sizes, graph.n_edges]
