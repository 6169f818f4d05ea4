"""``refusal-nn circuit``: which edges carry a behaviour, and how well they do so alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._circuit_files import export_command, show_command
from refusal_nn.cli._inputs import (
    SPLITS,
    input_model_option,
    keeping,
    model_of,
    split_of,
)
from refusal_nn.cli._options import (
    batch_size_option,
    config_option,
    json_option,
    loading_options,
    run_options,
    seed_option,
    take_loading,
    together,
)
from refusal_nn.cli._output import notice, notice_run, print_json, print_table

if TYPE_CHECKING:
    import xarray as xr

    from refusal_nn.runs import Run

ABLATIONS = ("resample", "mean", "zero")
NULLS = ("random", "layer-matched")

shared_options = together(
    input_model_option,
    loading_options,
    click.option(
        "--ablation",
        type=click.Choice(ABLATIONS),
        default="resample",
        show_default=True,
        help="What edges outside a circuit carry: the partner prompt's values, a mean, or zero.",
    ),
    batch_size_option,
    seed_option,
    run_options,
    config_option,
    json_option,
)


@click.group(name="circuit")
def command() -> None:
    """Find circuits, test them alone on held-out pairs, compare them."""


@command.command(name="discover")
@click.argument("scores")
@click.option("--edges", type=click.IntRange(min=1), metavar="N", help="Keep the N best edges.")
@click.option(
    "--fraction",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="Keep this fraction of the edges.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="T",
    help="Keep edges that score at least T: rule threshold.",
)
@click.option(
    "--faithfulness",
    "target",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="Keep as few edges as reach this faithfulness on --pairs.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.95,
    show_default=True,
    metavar="C",
    help="Of the interval whose lower end must reach --faithfulness; 0: the estimate must.",
)
@click.option("--pairs", metavar="PAIRS", help="Pairs to choose the size on. [--faithfulness]")
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default="val",
    show_default=True,
    help="Split of --pairs to use.",
)
@click.option(
    "--rule",
    type=click.Choice(["top", "greedy", "threshold"]),
    default="top",
    show_default=True,
    help="top: the best anywhere; greedy: the best into what is in already, from the logits up.",
)
@click.option(
    "--ranking",
    type=click.Choice(["absolute", "signed"]),
    default="absolute",
    show_default=True,
    help="Best by size of the score, or by how much it supports the metric.",
)
@click.option(
    "--resamples",
    "n_resamples",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="Resamples of the pairs that say how stable the circuit is; 0: none.",
)
@shared_options
def discover_command(
    scores: str,
    model: str | None,
    pairs: str | None,
    split: str,
    rule: str,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Keep the best edges of run SCORES, made by `attribute`; dead ends are pruned.

    \b
    Example usage:
      refusal-nn circuit discover RUN --edges 200
      refusal-nn circuit discover RUN --faithfulness 0.9 --pairs tiny-pairs
    """
    from refusal_nn.circuits import circuit_of, discover_run
    from refusal_nn.prompts import load_pairs
    from refusal_nn.runs import open_input

    if (pairs is None) != (options["target"] is None):
        raise click.UsageError("--faithfulness and --pairs go together; give both or neither.")
    measured = pairs is not None
    if not measured:
        _refuse("--faithfulness", "split", "ablation", "batch_size", "confidence")
        options |= {"ablation": None, "batch_size": None, "confidence": None}
    if options["threshold"] is not None and not _typed("rule"):
        rule = "threshold"
    source = open_input(stores, scores, "attribute-edges")
    loading = take_loading(options)
    chosen = None if pairs is None else split_of(load_pairs(pairs), split)
    used = model_of(source, model, loading) if measured or model is not None else None
    with keeping(stores, name, resume) as where:
        run = discover_run(used, source, where, pairs=chosen, rule=rule, **options)
    found = circuit_of(run)
    attrs = run.tree.attrs
    size = {"requested": int(attrs["requested"]), "kept": found.n_kept, "total": found.n_total}
    stable = (
        _bounds(run.tree["stability"].to_dataset(), "jaccard") if options["n_resamples"] else None
    )
    if as_json:
        print_json(
            {
                "run": run.path,
                "reused": run.reused,
                "edges": size,
                "nodes": len(found.nodes),
                "faithfulness": attrs.get("faithfulness"),
                "faithfulness_low": attrs.get("faithfulness_low"),
                "jaccard": stable,
            }
        )
        return
    row = [*size.values(), len(found.nodes), stable and stable["value"]]
    print_table(["requested", "kept", "total", "nodes", "jaccard"], [row])
    if measured:
        reached = f"{attrs['faithfulness']:.3f}, at least {attrs['faithfulness_low']:.3f}"
        notice(f"faithfulness on the pairs its size was chosen on: {reached}")
    notice_run(run)


@command.command(name="evaluate")
@click.argument("circuit")
@click.option("--pairs", required=True, metavar="PAIRS", help="Held-out pairs: a name or a file.")
@click.option(
    "--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Split to use."
)
@click.option(
    "--grid/--no-grid",
    default=True,
    show_default=True,
    help="Measure circuits of ten sizes by the same scores, for CPR and CMD.",
)
@click.option(
    "--null",
    "nulls",
    type=click.Choice([*NULLS, "none"]),
    multiple=True,
    default=NULLS,
    show_default=True,
    help="Random circuits of equal size to compare with; repeatable.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    default=99,
    show_default=True,
    help="Random circuits of each kind.",
)
@click.option("--minimality", is_flag=True, help="Measure the circuit without each of its edges.")
@shared_options
def evaluate_command(
    circuit: str,
    model: str | None,
    pairs: str,
    split: str,
    nulls: tuple[str, ...],
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Test the circuit of run CIRCUIT on held-out pairs, with everything outside it ablated.

    \b
    Example usage:
      refusal-nn circuit evaluate RUN --pairs tiny-pairs
    """
    from refusal_nn.circuits import evaluate_run
    from refusal_nn.prompts import load_pairs
    from refusal_nn.runs import open_input

    source = open_input(stores, circuit, "circuit-discover")
    loading = take_loading(options)
    chosen = split_of(load_pairs(pairs), split)
    kinds = tuple(kind for kind in nulls if kind != "none")
    with keeping(stores, name, resume) as where:
        run = evaluate_run(
            model_of(source, model, loading), source, chosen, where, nulls=kinds, **options
        )
    document = _evaluation(run)
    if as_json:
        print_json(document)
        return
    rows = [
        [what, *document[what].values()]
        for what in ("faithfulness", "completeness", "cpr_interval", "cmd_interval")
        if document.get(what)
    ]
    print_table(["", "value", "low", "high"], [[what, *map(_three, row)] for what, *row in rows])
    for kind, null in document["nulls"].items():
        notice(f"{kind} circuits at least as faithful: p = {null['p']:.3g} of {null['n']} draws")
    notice("{kept} of {total} edges".format(**document["edges"]))
    notice_run(run)


@command.command(name="compare")
@click.argument("circuits", nargs=-1, required=True)
@click.option(
    "--pairs",
    multiple=True,
    metavar="PAIRS",
    help="Measure each circuit on these held-out pairs; repeatable.",
)
@click.option(
    "--split", type=click.Choice(SPLITS), default="test", show_default=True, help="Split to use."
)
@shared_options
def compare_command(
    circuits: tuple[str, ...],
    model: str | None,
    pairs: tuple[str, ...],
    split: str,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare the circuits of several runs: shared edges and nodes, shared ranking.

    \b
    Example usage:
      refusal-nn circuit compare RUN RUN --pairs tiny-pairs
    """
    from refusal_nn.circuits import compare_run
    from refusal_nn.prompts import load_pairs
    from refusal_nn.runs import open_input

    if not pairs:
        _refuse("--pairs", "split", "ablation", "batch_size")
        options |= {"ablation": None, "batch_size": None}
    sources = [open_input(stores, circuit, "circuit-discover") for circuit in circuits]
    loading = take_loading(options)
    sets = [split_of(load_pairs(source), split) for source in pairs]
    chosen = {some.name: some for some in sets}
    if len(chosen) < len(sets):
        raise click.UsageError("two sets of pairs have one name; rename a file.")
    used = model_of(sources[0], model, loading) if pairs or model is not None else None
    with keeping(stores, name, resume) as where:
        run = compare_run(used, sources, where, pairs=chosen, **options)
    table = run.tree.to_dataset()
    names = [str(v) for v in table["circuit"].values]
    measures = ("iou", "node_iou", "rank_correlation", "rank_overlap")
    rows = [
        {
            "circuit": a,
            "other": b,
            **{m: float(table[m].values[i, j]) for m in measures},
            "p": float(table["overlap_p"].sel(null="layer-matched").values[i, j]),
        }
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if i < j
    ]
    cross = _cross(run.tree["cross"].to_dataset()) if "cross" in run.tree.children else []
    if as_json:
        print_json({"run": run.path, "reused": run.reused, "overlap": rows, "cross": cross})
        return
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    if cross:
        cells = [[_three(v) if isinstance(v, float) else v for v in row.values()] for row in cross]
        print_table(list(cross[0]), cells)
    notice_run(run)


def _evaluation(run: Run) -> dict[str, Any]:
    table, attrs = run.tree.to_dataset(), run.tree.attrs
    nulls: dict[str, Any] = {}
    if "null" in run.tree.children:
        found = run.tree["null"].to_dataset()
        draws = int(found.sizes["draw"])
        for kind, p in zip(found["null"].values, found["p_value"].values, strict=True):
            nulls[str(kind)] = {"p": float(p), "n": draws}
    # the sterner of the two speaks for both
    null = nulls.get("layer-matched") or next(iter(nulls.values()), None)
    return {
        "run": run.path,
        "reused": run.reused,
        "faithfulness": _bounds(table, "faithfulness"),
        "completeness": _bounds(table, "completeness"),
        "edges": {"kept": int(attrs["n_kept"]), "total": int(attrs["n_total"])},
        "null": null,
        "nulls": nulls,
        "cpr": float(table["cpr"]) if "cpr" in table else None,
        "cmd": float(table["cmd"]) if "cmd" in table else None,
        "cpr_interval": _bounds(table, "cpr") if "cpr" in table else None,
        "cmd_interval": _bounds(table, "cmd") if "cmd" in table else None,
    }


def _bounds(table: xr.Dataset, name: str) -> dict[str, float]:
    ends = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
    return {key: float(table[variable]) for key, variable in ends.items()}


def _cross(table: xr.Dataset) -> list[dict[str, Any]]:
    return [
        {
            "circuit": str(circuit),
            "pairs": str(pairs),
            "faithfulness": float(table["faithfulness"].values[i, j]),
            "low": float(table["faithfulness_low"].values[i, j]),
            "high": float(table["faithfulness_high"].values[i, j]),
            "completeness": float(table["completeness"].values[i, j]),
        }
        for i, circuit in enumerate(table["circuit"].values)
        for j, pairs in enumerate(table["pairs"].values)
    ]


def _three(value: float) -> str:
    """To three decimals: with fewer, .8994 would read as the .9 it misses."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _typed(name: str) -> bool:
    """Whether an option was given on the command line, not by a default or a configuration file."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _refuse(without: str, *names: str) -> None:
    """Refuse options that do nothing where another one is left out."""
    for name in names:
        if _typed(name):
            raise click.UsageError(f"--{name.replace('_', '-')} has no effect without {without}.")


command.add_command(export_command)
command.add_command(show_command)
