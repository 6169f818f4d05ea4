"""``refusal-nn circuit``: which edges carry a behaviour, and how well they do so alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._analysis import analysis_command
from refusal_nn.cli._circuit_files import export_command, show_command
from refusal_nn.cli._output import notice, notice_run, print_json, print_table

if TYPE_CHECKING:
    import xarray as xr

    from refusal_nn.runs import Run

ABLATION = {
    "help": "What edges outside a circuit carry: the partner prompt's values (resample, if nothing is "
    "said), a mean, or zero.",
}


@click.group(name="circuit")
def command() -> None:
    """Find circuits, test them alone on held-out pairs, compare them."""


def _prepare_discovery(values: dict[str, Any]) -> None:
    """Options that go together, and the rule that a threshold implies."""
    if (values["pairs"] is None) != (values["target"] is None):
        raise click.UsageError("--faithfulness and --pairs go together; give both or neither.")
    if values["pairs"] is None:
        _refuse("--faithfulness", "split", "ablation", "batch_size", "confidence")
        values |= {"ablation": None, "batch_size": None, "confidence": None}
    if values["threshold"] is not None and not _typed("rule"):
        values["rule"] = "threshold"


def _prepare_evaluation(values: dict[str, Any]) -> None:
    values["nulls"] = tuple(kind for kind in values["nulls"] if kind != "none")


def _prepare_comparison(values: dict[str, Any]) -> None:
    if not values["pairs"]:
        _refuse("--pairs", "split", "ablation", "batch_size")
        values |= {"ablation": None, "batch_size": None}


def _show_discovered(run: Run, as_json: bool) -> None:
    from refusal_nn.circuits import circuit_of

    found, attrs = circuit_of(run), run.attrs
    size = {"requested": int(attrs["requested"]), "kept": found.n_kept, "total": found.n_total}
    stable = None
    if "stability" in run.tree.children:
        stable = _bounds(run.tree["stability"].to_dataset(), "jaccard")
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
    if "faithfulness" in attrs:
        reached = f"{attrs['faithfulness']:.3f}, at least {attrs['faithfulness_low']:.3f}"
        notice(f"faithfulness on the pairs its size was chosen on: {reached}")
    notice_run(run)


def _show_evaluated(run: Run, as_json: bool) -> None:
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


def _show_compared(run: Run, as_json: bool) -> None:
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
    table, attrs = run.tree.to_dataset(), run.attrs
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


command.add_command(
    analysis_command(
        "refusal_nn.circuits._kept:discover_circuit",
        "discover",
        options={
            "edges": {
                "type": click.IntRange(min=1),
                "metavar": "N",
                "help": "Keep the N best edges.",
            },
            "fraction": {
                "type": click.FloatRange(0, 1, min_open=True),
                "metavar": "F",
                "help": "Keep this fraction of the edges.",
            },
            "threshold": {
                "metavar": "T",
                "help": "Keep edges that score at least T: rule threshold.",
            },
            "target": {
                "flag": "--faithfulness",
                "type": click.FloatRange(0, 1, min_open=True),
                "metavar": "F",
                "help": "Keep as few edges as reach this faithfulness on --pairs.",
            },
            "confidence": {
                "type": click.FloatRange(0, 1, max_open=True),
                "metavar": "C",
                "help": "Of the interval whose lower end must reach --faithfulness (.95, if nothing is "
                "said); 0: the estimate must.",
            },
            "pairs": {"help": "Pairs to choose the size on. [--faithfulness]"},
            "rule": {
                "help": "top: the best anywhere; greedy: the best into what is in already, from the "
                "logits up.",
            },
            "ranking": {
                "help": "Best by size of the score, or by how much it supports the metric.",
            },
            "n_resamples": {
                "flag": "--resamples",
                "type": click.IntRange(min=0),
                "help": "Resamples of the pairs that say how stable the circuit is; 0: none.",
            },
            "ablation": ABLATION,
        },
        prepare=_prepare_discovery,
        show=_show_discovered,
        text="""Keep the best edges of run SCORES, made by `attribute`; dead ends are pruned.

    \b
    Example usage:
      refusal-nn circuit discover RUN --edges 200
      refusal-nn circuit discover RUN --faithfulness 0.9 --pairs tiny-pairs
    """,
    )
)
command.add_command(
    analysis_command(
        "refusal_nn.circuits._kept:evaluate_circuit",
        "evaluate",
        options={
            "pairs": {"help": "Held-out pairs: a name or a file."},
            "grid": {"help": "Measure circuits of ten sizes by the same scores, for CPR and CMD."},
            "nulls": {
                "flag": "--null",
                "type": click.Choice(["random", "layer-matched", "none"]),
                "help": "Random circuits of equal size to compare with; repeatable.",
            },
            "draws": {"type": click.IntRange(min=1), "help": "Random circuits of each kind."},
            "minimality": {"help": "Measure the circuit without each of its edges."},
            "ablation": ABLATION,
        },
        prepare=_prepare_evaluation,
        show=_show_evaluated,
        text="""Test the circuit of run CIRCUIT on held-out pairs, with everything outside it ablated.

    \b
    Example usage:
      refusal-nn circuit evaluate RUN --pairs tiny-pairs
    """,
    )
)
command.add_command(
    analysis_command(
        "refusal_nn.circuits._kept:compare_circuits",
        "compare",
        options={
            "pairs": {"help": "Measure each circuit on these held-out pairs; repeatable."},
            "ablation": ABLATION,
        },
        prepare=_prepare_comparison,
        show=_show_compared,
        text="""Compare the circuits of several runs: shared edges and nodes, shared ranking.

    \b
    Example usage:
      refusal-nn circuit compare RUN RUN --pairs tiny-pairs
    """,
    )
)
