"""Circuits as runs: found from an attribution run, evaluated on new pairs, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import xarray as xr

from refusal_nn.attribution import Metric
from refusal_nn.circuits._circuit import FOUND_FAMILIES, FOUND_PAIRS, Circuit
from refusal_nn.circuits._compare import compare, cross_faithfulness
from refusal_nn.circuits._discover import discover
from refusal_nn.circuits._evaluate import check_apart, evaluate
from refusal_nn.circuits._nulls import NULLS, check_nulls
from refusal_nn.circuits._sizes import smallest
from refusal_nn.circuits._stability import stability
from refusal_nn.errors import RequestError
from refusal_nn.prompts import Pairs
from refusal_nn.runs import Groups, Keeping, Run, record, same_model

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.store import Recorder

_TEXTS = ("clean_text", "corrupted_text")
_IDENTITY = (
    *("model", "revision", "weights_hash", "tokenizer_hash", "template_hash"),
    *("dtype", "device", "backend"),
)
_CARRIED = (
    "model",
    "weights_hash",
    "d_model",
    "method",
    "steps",
    "rule",
    "ranking",
    "requested",
    "threshold",
    "target",
    FOUND_PAIRS,
    FOUND_FAMILIES,
)
Work = tuple[Groups, Mapping[str, Any]]


@dataclass(frozen=True)
class MadeWith:
    """The model a run was made with, by what the run says of it: for work that makes no pass.

    Parameters
    ----------
    run : Run
    """

    run: Run
    remote: None = None

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.run.tree.attrs["model"])

    def identity(self) -> dict[str, Any]:
        """As :meth:`refusal_nn.models.Model.identity`."""
        return {name: self.run.tree.attrs[name] for name in _IDENTITY}


def discover_run(
    model: Model | None,
    scores: Run,
    keeping: Keeping,
    *,
    edges: int | None = None,
    fraction: float | None = None,
    threshold: float | None = None,
    target: float | None = None,
    pairs: Pairs | None = None,
    rule: str = "top",
    ranking: str = "absolute",
    ablation: str | None = None,
    confidence: float | None = None,
    n_resamples: int = 100,
    batch_size: int | None = None,
    seed: int = 0,
) -> Run:
    """A circuit from a run of edge scores, as a run ``circuit-discover``.

    Its size is given (``edges``, ``fraction`` or ``threshold``, see
    :func:`refusal_nn.circuits.discover`), or it is the smallest that reaches the ``target``
    faithfulness on ``pairs`` (:func:`refusal_nn.circuits.smallest`), with ``ablation`` (default
    ``resample``), at ``confidence`` (default .95; 0 to go by the estimate) and in passes of
    ``batch_size`` rows: all three go with a target only. Without a target no pass is made: with ``model``
    None nothing is loaded, and the model is the one that made the scores.

    Raises
    ------
    RequestError
        If the size is given in none or several ways, an option needs a target that is not given, or
        the run is of another model.
    PromptError
        If ``pairs`` share a prompt or family with those the scores are of.
    WorkError
        If no circuit reaches the target.
    """
    used = model if model is not None else _made_with(scores)
    same_model(scores, used)
    if (target is None) != (pairs is None):
        raise RequestError(
            "a target faithfulness and the pairs to measure it on go together; give both or neither."
        )
    if target is not None and any(v is not None for v in (edges, fraction, threshold)):
        raise RequestError("the size is either given or found from a target; leave one out.")
    of_target = {"ablation": ablation, "confidence": confidence, "batch size": batch_size}
    if target is None and (given := [k for k, v in of_target.items() if v is not None]):
        raise RequestError(
            f"{given[0]} has no effect on a circuit of a given size; leave it out, or give a target "
            "faithfulness."
        )
    if target is not None:
        if model is None:
            raise RequestError("a target faithfulness is measured, which needs the model; give it.")
        ablation = "resample" if ablation is None else ablation
        confidence = 0.95 if confidence is None else confidence
    table = scores.tree.to_dataset().load()
    found_on = pairs_of(table, "discovery")

    def work(recorder: Recorder) -> Work:
        groups: dict[str, xr.Dataset] = {"discovery": texts(found_on)}
        attrs: dict[str, Any] = {}
        if target is None:
            circuit = discover(
                table,
                edges=edges,
                fraction=fraction,
                threshold=threshold,
                rule=rule,
                ranking=ranking,
            )
        else:
            assert pairs is not None
            assert model is not None
            assert ablation is not None
            ranked = discover(table, fraction=1.0, ranking=ranking)
            found = smallest(
                model,
                ranked,
                pairs,
                Metric.from_attrs(table.attrs),
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
            groups["sizes"] = found.tried.assign(texts(pairs))
            attrs = {
                "faithfulness": found.faithfulness,
                "faithfulness_low": found.low,
                "ablation": ablation,
            }
        if n_resamples:
            groups["stability"] = stability(table, circuit, n_resamples=n_resamples, seed=seed)
        groups["/"] = circuit.to_dataset()
        return groups, {**groups["/"].attrs, **attrs}

    return record(
        "circuit-discover",
        keeping,
        work,
        model=used,
        prompts_hash=str(table.attrs["prompts_hash"]) if pairs is None else pairs.hash,
        options={
            "edges": edges,
            "fraction": fraction,
            "threshold": threshold,
            "target": target,
            "pairs": None if pairs is None else pairs.name,
            "rule": rule,
            "ranking": ranking,
            "ablation": ablation,
            "confidence": confidence,
            "n_resamples": n_resamples,
            "batch_size": batch_size,
        },
        seed=seed,
        inputs=[scores],
    )


def evaluate_run(
    model: Model,
    circuit: Run,
    pairs: Pairs,
    keeping: Keeping,
    *,
    ablation: str = "resample",
    grid: bool = True,
    nulls: Sequence[str] = NULLS,
    draws: int = 99,
    minimality: bool = False,
    batch_size: int | None = None,
    seed: int = 0,
) -> Run:
    """A circuit on held-out pairs, as a run ``circuit-evaluate``.

    See :func:`refusal_nn.circuits.evaluate`.

    Raises
    ------
    RequestError
        If the circuit is of another model.
    PromptError
        If the pairs share a prompt or family with those it was found or its size was chosen on.
    """
    check_nulls(nulls, draws)
    same_model(circuit, model)
    found = circuit_of(circuit)
    found_on = check_new(circuit, pairs)

    def work(recorder: Recorder) -> Work:
        tree = evaluate(
            model,
            found,
            pairs,
            Metric.from_attrs(found.attrs),
            ablation=ablation,
            discovery=found_on,
            grid=grid,
            nulls=nulls,
            draws=draws,
            minimality=minimality,
            batch_size=batch_size,
            seed=seed,
            recorder=recorder,
        )
        groups = {name: tree[name].to_dataset() for name in tree.children}
        root = tree.to_dataset().assign(texts(pairs))
        return {"/": root, **groups}, {str(k): v for k, v in tree.attrs.items()}

    return record(
        "circuit-evaluate",
        keeping,
        work,
        model=model,
        prompts_hash=pairs.hash,
        options={
            "ablation": ablation,
            "grid": grid,
            "nulls": list(nulls),
            "draws": draws,
            "minimality": minimality,
            "batch_size": batch_size,
            "pairs": pairs.name,
        },
        seed=seed,
        inputs=[circuit],
    )


def compare_run(
    model: Model | None,
    circuits: Sequence[Run],
    keeping: Keeping,
    *,
    pairs: Mapping[str, Pairs] | None = None,
    ablation: str | None = None,
    batch_size: int | None = None,
    seed: int = 0,
) -> Run:
    """Overlap of circuits and, with ``pairs``, what each does on them, as a run ``circuit-compare``.

    See :func:`refusal_nn.circuits.compare` and :func:`refusal_nn.circuits.cross_faithfulness`. Without
    pairs no pass is made: with ``model`` None nothing is loaded, and the model is the one that made
    the first circuit; ``ablation`` and ``batch_size`` go with pairs only.

    Raises
    ------
    RequestError
        If there are fewer than two circuits, two of one name, of different models, or of different
        metrics where pairs are to be measured.
    PromptError
        If pairs share a prompt or family with those a circuit was found on.
    """
    named = {run.name: circuit_of(run) for run in circuits}
    if len(named) < len(circuits):
        raise RequestError("a run is named twice; compare different circuits.")
    if not circuits:
        raise RequestError("comparing needs at least two circuits, got 0.")
    used = model if model is not None else _made_with(circuits[0])
    for run in circuits:
        same_model(run, used)
    if pairs:
        if model is None:
            raise RequestError("circuits are measured on pairs, which needs the model; give it.")
        ablation = "resample" if ablation is None else ablation
    elif ablation is not None or batch_size is not None:
        raise RequestError(
            "ablation and batch size have no effect where no pairs are measured; leave them out, or "
            "give pairs."
        )
    metrics = [Metric.from_attrs(c.attrs).to_attrs() for c in named.values()] if pairs else []
    if any(m != metrics[0] for m in metrics):
        raise RequestError(
            "the circuits were found for different metrics, so there is no one faithfulness to compare; "
            "leave the pairs out."
        )
    found_on = [check_new(run, some) for run in circuits for some in (pairs or {}).values()]

    def work(recorder: Recorder) -> Work:
        groups = {"/": compare(named)}
        if pairs:
            assert model is not None
            assert ablation is not None
            groups["cross"] = cross_faithfulness(
                model,
                named,
                pairs,
                Metric.from_attrs(next(iter(named.values())).attrs),
                ablation=ablation,
                discovery=_joined(found_on),
                batch_size=batch_size,
                seed=seed,
                recorder=recorder,
            )
        return groups, groups["/"].attrs

    sets = list((pairs or {}).values())
    return record(
        "circuit-compare",
        keeping,
        work,
        model=used,
        prompts_hash="+".join(p.hash for p in sets) or str(circuits[0].tree.attrs["prompts_hash"]),
        options={
            "pairs": list(pairs or {}),
            "ablation": ablation,
            "batch_size": batch_size,
        },
        seed=seed,
        inputs=list(circuits),
    )


def circuit_of(run: Run) -> Circuit:
    """The circuit of a ``circuit-discover`` run, with its model and metric in its attrs."""
    ds = run.tree.to_dataset().load()
    own = {k: v for k, v in ds.attrs.items() if str(k).startswith("metric")}
    kept = {name: ds.attrs[name] for name in _CARRIED if name in ds.attrs}
    graph = {k: ds.attrs[k] for k in ("n_layers", "n_heads", "n_kv_heads", "parallel")}
    ds.attrs = {**own, **kept, **graph}
    return Circuit.from_dataset(ds)


def pairs_of(table: xr.Dataset, name: str) -> Pairs:
    """The pairs whose texts and labels a table holds.

    Raises
    ------
    RequestError
        If it holds none.
    """
    if any(t not in table for t in _TEXTS):
        raise RequestError(
            f"the {name} run does not say which pairs it was made from (no {' or '.join(_TEXTS)}); "
            "make it again."
        )
    columns = {
        "clean": table["clean_text"].values.tolist(),
        "corrupted": table["corrupted_text"].values.tolist(),
        **{c: table[c].values.tolist() for c in ("category", "split", "family")},
    }
    return Pairs(columns, name=f"the {name} pairs")


def texts(pairs: Pairs) -> xr.Dataset:
    """Both texts of each pair, with its labels."""
    return pairs.to_dataset()[list(_TEXTS)].drop_attrs(deep=False)


def check_new(circuit: Run, pairs: Pairs) -> Pairs:
    """The pairs a circuit was found on, after checking that others share nothing with them.

    Raises
    ------
    PromptError
        If they share a prompt or family, or do with the pairs its size was chosen on.
    """
    found_on = pairs_of(circuit.tree["discovery"].to_dataset().load(), "discovery")
    check_apart(found_on, pairs)
    if "sizes" in circuit.tree.children:
        check_apart(pairs_of(circuit.tree["sizes"].to_dataset().load(), "selection"), pairs)
    return found_on


def _made_with(run: Run) -> Model:
    # what makes no pass asks a model for no more than this
    return cast("Model", MadeWith(run))


def _joined(sets: Sequence[Pairs]) -> Pairs:
    rows = {(row["clean"], row["corrupted"]): row for pairs in sets for row in pairs.to_rows()}
    return Pairs.from_rows(list(rows.values()), name="the discovery pairs")
