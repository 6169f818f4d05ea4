"""What a circuit does alone on held-out pairs, beside its complement and random circuits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.circuits._circuit import FOUND_FAMILIES, FOUND_PAIRS, Circuit
from refusal_nn.circuits._discover import choose, size_of, supporting
from refusal_nn.circuits._faithfulness import FRACTIONS, Scale
from refusal_nn.circuits._measure import Bench
from refusal_nn.circuits._nulls import NULLS, check_nulls, p_value, random_circuits
from refusal_nn.errors import RequestError
from refusal_nn.stats._clusters import checked_confidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from refusal_nn.contrasts import Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.stats import Estimate
    from refusal_nn.store import Recorder

RANKINGS = ("signed", "absolute")
"""MIB ranks edges by signed score for CPR, by size for CMD."""


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
    circuit.check(model, pairs)
    check_nulls(nulls, draws)
    checked_confidence(confidence)
    if n_resamples < 1:
        raise RequestError(f"n_resamples is {n_resamples}; at least 1 is needed (9999 is usual).")
    if grid and circuit.scores is None:
        raise RequestError(
            "the circuit has no scores to make circuits of other sizes from; leave the grid out."
        )
    bench = Bench(model, pairs, metric, ablation, discovery, batch_size, recorder)
    named = {**bench.ends, "circuit": circuit.kept, "complement": circuit.complement.kept}
    table = bench.measure("circuits", [*named.values()], [*named])
    whole, nothing, alone, rest = table
    scale = Scale(
        whole,
        nothing,
        positive=metric.signed,
        cluster=pairs.family,
        confidence=confidence,
        n_resamples=n_resamples,
        seed=seed,
    )
    found = scale.faithfulness(alone)
    root = xr.Dataset(
        {
            "circuit_metric": (("circuit", "prompt"), table),
            **bounded("faithfulness", (), found),
            **bounded("completeness", (), scale.faithfulness(rest)),
        },
        coords={"circuit": np.array(list(named), dtype=object), **bench.labels()},
    )
    groups: dict[str, xr.Dataset] = {}
    if grid:
        groups["grid"], areas = _grid(bench, scale, circuit)
        root = root.assign(areas)
    if nulls:
        drawn = {k: random_circuits(circuit, draws, kind=k, seed=seed) for k in nulls}
        groups["null"] = _null(bench, scale, drawn, found.value)
    if minimality:
        groups["minimality"] = _minimality(bench, scale, circuit, alone)
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


def _grid(bench: Bench, scale: Scale, circuit: Circuit) -> tuple[xr.Dataset, dict[str, Any]]:
    assert circuit.scores is not None
    graph, worth = bench.graph, supporting(circuit.scores, bench.metric.kind)
    kept = np.array(
        [
            [choose(graph, worth, n=size_of(graph, p), ranking=ranking) for p in FRACTIONS]
            for ranking in RANKINGS
        ]
    )
    names = [f"{ranking} {p:g}" for ranking in RANKINGS for p in FRACTIONS]
    curves = bench.measure("grid", kept, names)
    dims = ("ranking", "fraction")
    grid = xr.Dataset(
        {
            "circuit_metric": ((*dims, "prompt"), curves),
            "edges_kept": (dims, kept.sum((2, 3))),
            **bounded("faithfulness", dims, scale.faithfulness(curves)),
        },
        coords={
            "ranking": np.array(RANKINGS, dtype=object),
            "fraction": list(FRACTIONS),
            **bench.labels(),
        },
    )
    signed, absolute = curves
    return grid, bounded("cpr", (), scale.cpr(signed)) | bounded("cmd", (), scale.cmd(absolute))


def _null(
    bench: Bench, scale: Scale, drawn: dict[str, NDArray[np.bool_]], observed: float
) -> xr.Dataset:
    """Random circuits ``[draw, src, dst]`` of each kind, and whether they do as well."""
    kept = np.stack([*drawn.values()])
    draws = range(kept.shape[1])
    table = bench.measure("null", kept, [f"{kind} {i}" for kind in drawn for i in draws])
    values = (table - scale.nothing).mean(-1) / scale.total.mean()
    dims = ("null", "draw")
    return xr.Dataset(
        {
            "circuit_metric": ((*dims, "prompt"), table),
            "edges_kept": (dims, kept.sum((2, 3))),
            "faithfulness": (dims, values),
            "p_value": ("null", [p_value(observed, row) for row in values]),
        },
        coords={
            "null": np.array(list(drawn), dtype=object),
            "draw": np.array(draws),
            **bench.labels(),
        },
    )


def _minimality(
    bench: Bench, scale: Scale, circuit: Circuit, alone: NDArray[np.float64]
) -> xr.Dataset:
    edges = circuit.edges()
    without = np.repeat(circuit.kept[None], len(edges), axis=0)
    without[np.arange(len(edges)), *np.nonzero(circuit.kept)] = False
    table = bench.measure("minimality", without, [f"without {s}->{d}" for s, d in edges])
    # what is lost is a ratio of means too
    lost = scale.faithfulness(alone - table + scale.nothing)
    src, dst = np.array(edges, dtype=object).T
    return xr.Dataset(
        bounded("edge_effect", ("edge",), lost),
        coords={"edge": np.arange(len(edges)), "src": ("edge", src), "dst": ("edge", dst)},
    )
