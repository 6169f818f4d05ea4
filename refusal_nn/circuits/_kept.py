"""Circuits as commands make them: found from edge scores, evaluated on new pairs, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import xarray as xr

from refusal_nn.circuits._circuit import FOUND_FAMILIES, FOUND_PAIRS, MODEL, SCORED, Circuit
from refusal_nn.circuits._compare import compare, cross_faithfulness
from refusal_nn.circuits._discover import discover
from refusal_nn.circuits._evaluate import evaluate
from refusal_nn.circuits._measure import check_apart
from refusal_nn.circuits._sizes import smallest
from refusal_nn.circuits._stability import stability
from refusal_nn.contrasts import Metric
from refusal_nn.contrasts._contrast import SIDES
from refusal_nn.errors import RequestError
from refusal_nn.prompts import Pairs
from refusal_nn.prompts._pairs import PAIR_COLUMNS
from refusal_nn.runs import analysis

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.store import Recorder, Run

_CARRIED = (
    *MODEL,
    *SCORED,
    *("rule", "ranking", "requested", "threshold", "target"),
    *(FOUND_PAIRS, FOUND_FAMILIES),
)


@analysis(
    "circuit-discover",
    runs={"scores": "attribute-edges"},
    splits={"pairs": "val"},
    section="refusal_nn.report._circuits:part",
)
def discover_circuit(
    scores: xr.Dataset,
    *,
    model: Model | None = None,
    edges: int | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    target: float | None = None,
    confidence: float | None = None,
    pairs: Pairs | None = None,
    rule: str = "top",
    ranking: str = "absolute",
    n_resamples: int = 100,
    ablation: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """A circuit from edge scores, of a given size or the smallest that is faithful enough.

    Its size is given (``edges``, ``fraction`` or ``threshold``, see
    :func:`refusal_nn.circuits.discover`), or it is the smallest that reaches the ``target``
    faithfulness on ``pairs`` (:func:`refusal_nn.circuits.smallest`), with ``ablation`` (default
    ``resample``), at ``confidence`` (default .95; 0 to go by the estimate) and in passes of
    ``batch_size`` rows: all three go with a target only. Without a target no pass is made and no model
    is needed.

    Parameters
    ----------
    scores : xarray.Dataset
        From :func:`refusal_nn.attribution.attribute`, level ``edge``.
    edges : int in [1, inf), optional
        Keep the N best edges.
    fraction : float in (0, 1], optional
        Keep this fraction of the edges.
    threshold : float, optional
        Keep edges that score at least T: rule threshold.
    target : float in (0, 1], optional
        Keep as few edges as reach this faithfulness on ``pairs``.
    confidence : float in [0, 1), optional
        Of the interval whose lower end must reach ``target``.
    rule : {"top", "greedy", "threshold"}
        top: the best anywhere; greedy: the best into what is in already, from the logits up.
    ranking : {"absolute", "signed"}
        Best by size of the score, or by how much it supports the metric.
    n_resamples : int in [0, inf)
        Resamples of the pairs that say how stable the circuit is; 0: none.
    ablation : {"resample", "mean", "zero"}, optional
        What edges outside a circuit carry: the partner prompt's values (resample, if nothing is said), a
        mean, or zero.
    model, pairs, batch_size, seed, recorder
        As above.

    Returns
    -------
    xarray.DataTree
        The circuit at the root; the pairs its scores are of in ``discovery``; ``sizes`` that were
        tried; ``stability``, see :func:`refusal_nn.circuits.stability`.

    Raises
    ------
    RequestError
        If the size is given in none or several ways, or an option needs a target that is not given.
    PromptError
        If ``pairs`` share a prompt or family with those the scores are of.
    WorkError
        If no circuit reaches the target.
    """
    size: dict[str, Any] = {"edges": edges, "fraction": fraction, "threshold": threshold}
    of_target = {"ablation": ablation, "confidence": confidence, "batch size": batch_size}
    if (target is None) != (pairs is None):
        raise RequestError(
            "a target faithfulness and the pairs to measure it on go together; give both or neither."
        )
    if target is not None and any(v is not None for v in size.values()):
        raise RequestError("the size is either given or found from a target; leave one out.")
    if target is None and (given := [k for k, v in of_target.items() if v is not None]):
        raise RequestError(
            f"{given[0]} has no effect on a circuit of a given size; leave it out, or give a target "
            "faithfulness."
        )
    found_on = pairs_of(scores, "discovery")
    groups: dict[str, xr.Dataset] = {"/discovery": texts(found_on)}
    attrs: dict[str, Any] = {}
    if target is None:
        circuit = discover(scores, **size, rule=rule, ranking=ranking)
    else:
        if model is None or pairs is None:
            raise RequestError("a target faithfulness is measured, which needs the model; give it.")
        ablation = "resample" if ablation is None else ablation
        confidence = 0.95 if confidence is None else confidence
        found = smallest(
            model,
            discover(scores, fraction=1.0, ranking=ranking),
            pairs,
            Metric.from_attrs(scores.attrs),
            target=target,
            rule=rule,
            ranking=ranking,
            ablation=ablation,
            discovery=found_on,
            confidence=confidence or None,
            batch_size=batch_size,
            seed=seed,
            recorder=recorder,
        )
        circuit = found.circuit
        groups["/sizes"] = found.tried.assign(texts(pairs))
        attrs = {
            "faithfulness": found.faithfulness,
            "faithfulness_low": found.low,
            "ablation": ablation,
        }
    if n_resamples:
        groups["/stability"] = stability(scores, circuit, n_resamples=n_resamples, seed=seed)
    groups["/"] = circuit.to_dataset().assign_attrs(attrs)
    return xr.DataTree.from_dict(groups)


@analysis(
    "circuit-evaluate",
    runs={"circuit": "circuit-discover"},
    splits={"pairs": "test"},
    section="refusal_nn.report._circuits:part",
)
def evaluate_circuit(
    model: Model,
    circuit: xr.DataTree,
    pairs: Pairs,
    *,
    grid: bool = True,
    nulls: Sequence[str] = ("random", "layer-matched"),
    draws: int = 99,
    minimality: bool = False,
    ablation: str = "resample",
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """A discovered circuit on held-out pairs; see :func:`refusal_nn.circuits.evaluate`.

    Parameters
    ----------
    circuit : xarray.DataTree
        From :func:`discover_circuit`.
    grid : bool
        Measure circuits of ten sizes by the same scores, for CPR and CMD.
    nulls : sequence of {"random", "layer-matched"}
        Random circuits of equal size to compare with.
    draws : int in [1, inf)
        Random circuits of each kind.
    minimality : bool
        Measure the circuit without each of its edges.
    ablation : {"resample", "mean", "zero"}
        What edges outside a circuit carry: the partner prompt's values (resample, if nothing is said), a
        mean, or zero.
    model, pairs, batch_size, seed, recorder
        See :func:`refusal_nn.circuits.evaluate`.

    Returns
    -------
    xarray.DataTree
        As :func:`refusal_nn.circuits.evaluate`, with both texts of each pair at the root.

    Raises
    ------
    RequestError
        If the circuit is of another model.
    PromptError
        If the pairs share a prompt or family with those it was found or its size was chosen on.
    """
    found = circuit_of(circuit)
    tree = evaluate(
        model,
        found,
        pairs,
        Metric.from_attrs(found.attrs),
        ablation=ablation,
        discovery=check_new(circuit, pairs),
        grid=grid,
        nulls=nulls,
        draws=draws,
        minimality=minimality,
        batch_size=batch_size,
        seed=seed,
        recorder=recorder,
    )
    tree.dataset = tree.to_dataset().assign(texts(pairs))
    return tree


@analysis(
    "circuit-compare",
    runs={"circuits": "circuit-discover"},
    splits={"pairs": "test"},
    section="refusal_nn.report._circuits:part",
)
def compare_circuits(
    circuits: Sequence[xr.DataTree],
    *,
    model: Model | None = None,
    pairs: Mapping[str, Pairs] | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """Overlap of discovered circuits and, with ``pairs``, what each does on them.

    See :func:`refusal_nn.circuits.compare` and :func:`refusal_nn.circuits.cross_faithfulness`. Without
    pairs no pass is made and no model is needed; ``ablation`` and ``batch_size`` go with pairs only.

    Parameters
    ----------
    circuits : sequence of xarray.DataTree
        From :func:`discover_circuit`; told apart by their attr ``name``, else by their number.
    pairs : mapping, optional
        Name to held-out pairs.
    ablation : {"resample", "mean", "zero"}, optional
        What edges outside a circuit carry: the partner prompt's values (resample, if nothing is said), a
        mean, or zero.
    model, batch_size, seed, recorder
        See :func:`refusal_nn.circuits.cross_faithfulness`.

    Returns
    -------
    xarray.DataTree
        The overlap at the root, faithfulness on the pairs in ``cross``.

    Raises
    ------
    RequestError
        If there are fewer than two circuits, two of one name, of different models, or of different
        metrics where pairs are to be measured.
    PromptError
        If pairs share a prompt or family with those a circuit was found on.
    """
    named = {str(c.attrs.get("name", i)): circuit_of(c) for i, c in enumerate(circuits)}
    if len(named) < len(circuits):
        raise RequestError("a run is named twice; compare different circuits.")
    groups = {"/": compare(named)}
    if not pairs:
        if ablation is not None or batch_size is not None:
            raise RequestError(
                "ablation and batch size have no effect where no pairs are measured; leave them out, "
                "or give pairs."
            )
        return xr.DataTree.from_dict(groups)
    if model is None:
        raise RequestError("circuits are measured on pairs, which needs the model; give it.")
    metrics = [Metric.from_attrs(c.attrs) for c in named.values()]
    if any(m.to_attrs() != metrics[0].to_attrs() for m in metrics):
        raise RequestError(
            "the circuits were found for different metrics, so there is no one faithfulness to compare; "
            "leave the pairs out."
        )
    found_on = [check_new(circuit, some) for circuit in circuits for some in pairs.values()]
    groups["/cross"] = cross_faithfulness(
        model,
        named,
        pairs,
        metrics[0],
        ablation="resample" if ablation is None else ablation,
        discovery=_joined(found_on),
        batch_size=batch_size,
        seed=seed,
        recorder=recorder,
    )
    return xr.DataTree.from_dict(groups)


def circuit_of(found: Run | xr.DataTree) -> Circuit:
    """The circuit of a ``circuit-discover`` run, with its model and metric in its attrs."""
    tree = found if isinstance(found, xr.DataTree) else found.tree
    circuit = Circuit.from_dataset(tree.to_dataset().load())
    attrs = {k: v for k, v in circuit.attrs.items() if k.startswith("metric")}
    attrs |= {name: circuit.attrs[name] for name in _CARRIED if name in circuit.attrs}
    return replace(circuit, attrs=attrs)


def pairs_of(table: xr.Dataset, name: str) -> Pairs:
    """The pairs whose texts and labels a table holds.

    Raises
    ------
    RequestError
        If it holds none.
    """
    names = {c: f"{c}_text" if c in SIDES else c for c in PAIR_COLUMNS}
    if any(names[side] not in table for side in SIDES):
        raise RequestError(
            f"the {name} run does not say which pairs it was made from (no "
            f"{' or '.join(names[side] for side in SIDES)}); make it again."
        )
    columns = {c: table[variable].values.tolist() for c, variable in names.items()}
    return Pairs(columns, name=f"the {name} pairs")


def texts(pairs: Pairs) -> xr.Dataset:
    """Both texts of each pair, with its labels."""
    return pairs.to_dataset().drop_attrs(deep=False)


def check_new(circuit: xr.DataTree, pairs: Pairs) -> Pairs:
    """The pairs a circuit was found on, after checking that others share nothing with them.

    Raises
    ------
    PromptError
        If they share a prompt or family, or do with the pairs its size was chosen on.
    """
    found_on = pairs_of(circuit["discovery"].to_dataset().load(), "discovery")
    check_apart(found_on, pairs)
    if "sizes" in circuit.children:
        check_apart(pairs_of(circuit["sizes"].to_dataset().load(), "selection"), pairs)
    return found_on


def _joined(sets: Sequence[Pairs]) -> Pairs:
    rows = {(row["clean"], row["corrupted"]): row for pairs in sets for row in pairs.to_rows()}
    return Pairs.from_rows(list(rows.values()), name="the discovery pairs")
