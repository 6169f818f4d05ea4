"""What a circuit does alone on held-out pairs, beside its complement and random circuits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.circuits._ablation import ablation_of
from refusal_nn.circuits._circuit import FOUND_FAMILIES, FOUND_PAIRS, Circuit
from refusal_nn.circuits._discover import choose, size_of, supporting
from refusal_nn.circuits._faithfulness import (
    FRACTIONS,
    check_difference,
    cmd,
    cpr,
    faithfulness,
)
from refusal_nn.circuits._measure import Bench, measure
from refusal_nn.circuits._nulls import NULLS, check_nulls, p_value, random_circuits
from refusal_nn.contrasts import Contrast
from refusal_nn.errors import PromptError, RequestError
from refusal_nn.prompts import overlaps
from refusal_nn.stats._clusters import checked_confidence
from refusal_nn.store import MemoryRecorder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refusal_nn.contrasts import Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.stats import Estimate
    from refusal_nn.store import Recorder

MODEL, ABLATED = "model", "ablated"
RANKING_OF = {"cpr": "signed", "cmd": "absolute"}
"""MIB ranks edges by signed score for CPR, by size for CMD."""


def bench_of(
    model: Model,
    pairs: Pairs,
    metric: Metric,
    *,
    ablation: str = "resample",
    discovery: Pairs | None = None,
    batch_size: int | None = None,
    recorder: Recorder | None = None,
) -> Bench:
    """What circuits of a model are measured on; checks that the pairs are new and fit.

    Raises
    ------
    PromptError
        If the pairs share a prompt or family with the discovery pairs, are not aligned, or are
        longer than the discovery prompts of a mean ablation.
    RequestError
        If the metric or the ablation does not fit.
    """
    if discovery is not None:
        check_apart(discovery, pairs)
    contrast = Contrast(model, pairs, metric)
    rec = recorder if recorder is not None else MemoryRecorder()
    values = ablation_of(model, ablation, discovery, batch_size=batch_size, recorder=rec)
    values.check(contrast.aligned.lengths)
    return Bench(contrast, values, recorder=rec, batch_size=batch_size)


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


def check_unseen(circuit: Circuit, pairs: Pairs) -> None:
    """Refuse pairs that a circuit was found on, where its attrs say which those are.

    Raises
    ------
    PromptError
        If they share a pair or family, whatever ``discovery`` says.
    """
    for name, labels in ((FOUND_PAIRS, pairs.pair_id), (FOUND_FAMILIES, pairs.family)):
        known = set(map(str, circuit.attrs.get(name, ())))
        if both := sorted(known & set(map(str, labels))):
            what = "pair" if name == FOUND_PAIRS else "family"
            raise PromptError(
                f"{pairs.name!r} and the pairs the circuit was found on share {what} {both[0]!r} "
                f"({len(both)} in all), so what it does on them says nothing of new ones; give pairs of "
                "another split or other families."
            )


def evaluate(
    model: Model,
    circuit: Circuit,
    pairs: Pairs,
    metric: Metric,
    *,
    ablation: str = "resample",
    discovery: Pairs | None = None,
    grid: bool = True,
    nulls: Sequence[str] = NULLS,
    draws: int = 99,
    minimality: bool = False,
    confidence: float = 0.95,
    n_resamples: int = 9999,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """Faithfulness of a circuit, of its complement, of circuits of other sizes and of random ones.

    Parameters
    ----------
    model : Model
    circuit : Circuit
    pairs : Pairs
        Held-out pairs.
    metric : Metric
    ablation : {"resample", "mean", "zero"}
        What edges outside a circuit carry.
    discovery : Pairs, optional
        What the circuit was found on: checked to be disjoint from ``pairs``, as are the pairs that
        the circuit's attrs name; needed for means.
    grid : bool
        Measure circuits of the sizes of MIB's grid, from the circuit's scores, for CPR and CMD.
    nulls : sequence of str
        Kinds of random circuits, see :func:`refusal_nn.circuits.random_circuits`.
    draws : int
        Random circuits of each kind.
    minimality : bool
        Measure the circuit without each of its edges: as many circuits as it has edges.
    confidence, n_resamples : float, int
        Of the intervals: paired BCa bootstrap of families of pairs.
    batch_size : int, optional
        Rows in a pass; results do not depend on it beyond rounding.
    seed : int
        Of random circuits and resamples.
    recorder : Recorder, optional

    Returns
    -------
    xarray.DataTree
        ``/``: ``circuit_metric`` ``(circuit, prompt)`` of ``model``, ``ablated``, ``circuit`` and
        ``complement``; ``faithfulness`` and ``completeness`` with ``_low`` and ``_high``;
        ``cpr``, ``cmd``. ``/grid``: the same metric and faithfulness over ``(ranking, fraction)``.
        ``/null``: over ``(null, draw)``, with ``p_value`` ``(null)``. ``/minimality``:
        ``edge_effect`` ``(edge)``. ``/edges``: the circuit.

    Raises
    ------
    RequestError
        If the circuit is of another model, or has no scores and a grid is asked for.
    PromptError
        If pairs are not new, not aligned, or the model cannot be told from the ablated model on
        them.

    References
    ----------
    Hanna et al. 2024 (faithfulness); Marks et al. 2024 (completeness); Mueller et al. 2025, MIB
    (CPR, CMD); Shi et al. 2024 (random reference circuits).
    """
    circuit.check(model)
    check_unseen(circuit, pairs)
    check_nulls(nulls, draws)
    checked_confidence(confidence)
    if n_resamples < 1:
        raise RequestError(f"n_resamples is {n_resamples}; at least 1 is needed (9999 is usual).")
    if grid and circuit.scores is None:
        raise RequestError(
            "the circuit has no scores to make circuits of other sizes from; leave the grid out."
        )
    bench = bench_of(
        model,
        pairs,
        metric,
        ablation=ablation,
        discovery=discovery,
        batch_size=batch_size,
        recorder=recorder,
    )
    options = {
        "cluster": pairs.family,
        "confidence": confidence,
        "n_resamples": n_resamples,
        "seed": seed,
    }
    graph = bench.graph
    named = {
        MODEL: graph.mask,
        ABLATED: np.zeros_like(graph.mask),
        "circuit": circuit.kept,
        "complement": circuit.complement.kept,
    }
    table = measure(bench, "circuits", list(named.values()), list(named))
    whole, nothing = table[0], table[1]
    check_difference(whole, nothing, positive=metric.signed, **options)
    found = faithfulness(table[2], whole, nothing, **options)
    rest = faithfulness(table[3], whole, nothing, **options)
    labels = bench.labels()
    root = xr.Dataset(
        {
            "circuit_metric": (("circuit", "prompt"), table),
            **bounded("faithfulness", (), found),
            **bounded("completeness", (), rest),
        },
        coords={"circuit": np.array(list(named), dtype=object), **labels},
    )
    groups: dict[str, xr.Dataset] = {}
    if grid:
        groups["grid"], areas = _grid(bench, circuit, whole, nothing, labels, options)
        root = root.assign(areas)
    if nulls:
        groups["null"] = _null(bench, circuit, nulls, draws, whole, nothing, labels, found, seed)
    if minimality:
        groups["minimality"] = _minimality(bench, circuit, table[2], whole, nothing, options)
    root.attrs = {
        **{k: v for k, v in circuit.attrs.items() if k not in (FOUND_PAIRS, FOUND_FAMILIES)},
        **bench.attrs(),
        "ablation": ablation,
        "interval": found.method,
        "n_kept": circuit.n_kept,
        "n_total": circuit.n_total,
    }
    return xr.DataTree.from_dict({"/": root, **groups, "edges": circuit.to_dataset()})


def bounded(name: str, dims: Sequence[str], found: Estimate) -> dict[str, Any]:
    """An estimate and the ends of its interval as variables."""
    values = {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
    return {key: (tuple(dims), np.asarray(value, dtype=float)) for key, value in values.items()}


def _grid(
    bench: Bench,
    circuit: Circuit,
    whole: NDArray[np.float64],
    nothing: NDArray[np.float64],
    labels: dict[str, Any],
    options: dict[str, Any],
) -> tuple[xr.Dataset, dict[str, Any]]:
    graph = bench.graph
    assert circuit.scores is not None
    worth = supporting(circuit.scores, bench.metric.kind)
    rankings = list(RANKING_OF.values())
    kept = np.array(
        [
            [choose(graph, worth, n=size_of(graph, p), ranking=ranking) for p in FRACTIONS]
            for ranking in rankings
        ]
    )
    shape = kept.shape[:2]
    names = [f"{ranking} {p:g}" for ranking in rankings for p in FRACTIONS]
    table = measure(bench, "grid", list(kept.reshape(-1, *graph.mask.shape)), names)
    curves = table.reshape(*shape, -1)
    found = faithfulness(np.moveaxis(curves, -1, 0), whole, nothing, **options)
    dims = ("ranking", "fraction")
    grid = xr.Dataset(
        {
            "circuit_metric": ((*dims, "prompt"), curves),
            "edges_kept": (dims, kept.sum((2, 3))),
            **bounded("faithfulness", dims, found),
        },
        coords={
            "ranking": np.array(rankings, dtype=object),
            "fraction": list(FRACTIONS),
            **labels,
        },
    )
    areas: dict[str, Any] = {}
    for name, area in (("cpr", cpr), ("cmd", cmd)):
        curve = curves[rankings.index(RANKING_OF[name])].T
        areas |= bounded(name, (), area(curve, whole, nothing, FRACTIONS, **options))
    return grid, areas


def _null(
    bench: Bench,
    circuit: Circuit,
    nulls: Sequence[str],
    draws: int,
    whole: NDArray[np.float64],
    nothing: NDArray[np.float64],
    labels: dict[str, Any],
    found: Estimate,
    seed: int,
) -> xr.Dataset:
    drawn = np.stack([random_circuits(circuit, draws, kind=k, seed=seed) for k in nulls])
    names = [f"{kind} {i}" for kind in nulls for i in range(draws)]
    table = measure(bench, "null", list(drawn.reshape(-1, *bench.graph.mask.shape)), names)
    table = table.reshape(len(nulls), draws, -1)
    values = (table - nothing).mean(-1) / (whole - nothing).mean()
    dims = ("null", "draw")
    return xr.Dataset(
        {
            "circuit_metric": ((*dims, "prompt"), table),
            "edges_kept": (dims, drawn.sum((2, 3))),
            "faithfulness": (dims, values),
            "p_value": ("null", np.array([p_value(found.value, row) for row in values])),
        },
        coords={"null": np.array(list(nulls), dtype=object), "draw": np.arange(draws), **labels},
    )


def _minimality(
    bench: Bench,
    circuit: Circuit,
    alone: NDArray[np.float64],
    whole: NDArray[np.float64],
    nothing: NDArray[np.float64],
    options: dict[str, Any],
) -> xr.Dataset:
    at = np.argwhere(circuit.kept)
    without = []
    for s, d in at:
        kept = circuit.kept.copy()
        kept[s, d] = False
        without.append(kept)
    edges = circuit.edges()
    table = measure(bench, "minimality", without, [f"without {s}->{d}" for s, d in edges])
    # what is lost is a ratio of means too
    lost = faithfulness((alone - table + nothing).T, whole, nothing, **options)
    return xr.Dataset(
        bounded("edge_effect", ("edge",), lost),
        coords={
            "edge": np.arange(len(edges)),
            "src": ("edge", np.array([s for s, _ in edges], dtype=object)),
            "dst": ("edge", np.array([d for _, d in edges], dtype=object)),
        },
    )
