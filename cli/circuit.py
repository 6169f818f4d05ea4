"""``refusal-nn circuit``: which edges carry a behaviour, and how well they do so alone."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._analysis import analysis_command
from refusal_nn.cli._circuit_files import export_command, show_command
from refusal_nn.cli._output import Table, show_run

if TYPE_CHECKING:
    import xarray as xr

    from refusal_nn.runs import Run


@click.group(name="circuit")
def command() -> None:
    """Find circuits, test them alone on held-out pairs, compare them."""


command.add_command(export_command)
command.add_command(show_command)


def _prepare_discovery(values: dict[str, Any]) -> None:
    """Options that go together, and the rule that a threshold implies."""
    if (values["pairs"] is None) != (values["target"] is None):
        raise click.UsageError("--faithfulness and --pairs go together; give both or neither.")
    if values["pairs"] is None:
        _drop(values, "--faithfulness", "split", "ablation", "batch_size", "confidence")
    if values["threshold"] is not None and not _typed("rule"):
        values["rule"] = "threshold"


@analysis_command(
    "refusal_nn.circuits._kept:discover_circuit",
    "discover",
    group=command,
    options={
        "edges": {"metavar": "N"},
        "fraction": {"metavar": "F"},
        "threshold": {"metavar": "T"},
        "target": {
            "flag": "--faithfulness",
            "metavar": "F",
            "help": "Keep as few edges as reach this faithfulness on --pairs.",
        },
        "confidence": {
            "metavar": "C",
            "help": "Of the interval whose lower end must reach --faithfulness (.95, if nothing is "
            "said); 0: the estimate must.",
        },
        "pairs": {"help": "Pairs to choose the size on. [--faithfulness]"},
        "n_resamples": {"flag": "--resamples"},
    },
    prepare=_prepare_discovery,
)
def discover(run: Run) -> None:
    """Keep the best edges of run SCORES, made by `attribute`; dead ends are pruned.

    \b
    Example usage:
      refusal-nn circuit discover RUN --edges 200
      refusal-nn circuit discover RUN --faithfulness 0.9 --pairs tiny-pairs
    """
    from refusal_nn.circuits import circuit_of

    found, attrs = circuit_of(run), run.attrs
    size = {"requested": int(attrs["requested"]), "kept": found.n_kept, "total": found.n_total}
    stable = None
    if "stability" in run.tree.children:
        stable = _bounds(run.tree["stability"].to_dataset(), "jaccard")
    notices = []
    if "faithfulness" in attrs:
        reached = f"{attrs['faithfulness']:.3f}, at least {attrs['faithfulness_low']:.3f}"
        notices = [f"faithfulness on the pairs its size was chosen on: {reached}"]
    document = {
        "edges": size,
        "nodes": len(found.nodes),
        "faithfulness": attrs.get("faithfulness"),
        "faithfulness_low": attrs.get("faithfulness_low"),
        "jaccard": stable,
    }
    row = {**size, "nodes": len(found.nodes), "jaccard": stable and stable["value"]}
    show_run(run, document, Table([row]), notices=notices)


def _prepare_evaluation(values: dict[str, Any]) -> None:
    values["nulls"] = tuple(kind for kind in values["nulls"] if kind != "none")


@analysis_command(
    "refusal_nn.circuits._kept:evaluate_circuit",
    "evaluate",
    group=command,
    options={
        "pairs": {"help": "Held-out pairs: a name or a file."},
        "nulls": {
            "flag": "--null",
            "type": click.Choice(["random", "layer-matched", "none"]),
            "help": "Random circuits of equal size to compare with; repeatable.",
        },
    },
    prepare=_prepare_evaluation,
)
def evaluate(run: Run) -> None:
    """Test the circuit of run CIRCUIT on held-out pairs, with everything outside it ablated.

    \b
    Example usage:
      refusal-nn circuit evaluate RUN --pairs tiny-pairs
    """
    table, attrs = run.tree.to_dataset(), run.attrs
    bounds = {
        "faithfulness": _bounds(table, "faithfulness"),
        "completeness": _bounds(table, "completeness"),
        "cpr_interval": _bounds(table, "cpr"),
        "cmd_interval": _bounds(table, "cmd"),
    }
    nulls: dict[str, dict[str, Any]] = {}
    if "null" in run.tree.children:
        found = run.tree["null"].to_dataset()
        ps = found["p_value"].to_series()
        nulls = {str(kind): {"p": float(p), "n": found.sizes["draw"]} for kind, p in ps.items()}
    edges = {"kept": int(attrs["n_kept"]), "total": int(attrs["n_total"])}
    document = {
        **bounds,
        "edges": edges,
        # the sterner of the two speaks for both
        "null": nulls.get("layer-matched") or next(iter(nulls.values()), None),
        "nulls": nulls,
        **{name: float(table[name]) if name in table else None for name in ("cpr", "cmd")},
    }
    rows = [[row, *map(_three, ends.values())] for row, ends in bounds.items() if ends]
    notices = [
        f"{kind} circuits at least as faithful: p = {null['p']:.3g} of {null['n']} draws"
        for kind, null in nulls.items()
    ]
    notices.append("{kept} of {total} edges".format(**edges))
    show_run(run, document, Table(rows, ["", "value", "low", "high"]), notices=notices)


def _prepare_comparison(values: dict[str, Any]) -> None:
    if not values["pairs"]:
        _drop(values, "--pairs", "split", "ablation", "batch_size")


@analysis_command(
    "refusal_nn.circuits._kept:compare_circuits",
    "compare",
    group=command,
    options={"pairs": {"help": "Measure each circuit on these held-out pairs; repeatable."}},
    prepare=_prepare_comparison,
)
def compare(run: Run) -> None:
    """Compare the circuits of several runs: shared edges and nodes, shared ranking.

    \b
    Example usage:
      refusal-nn circuit compare RUN RUN --pairs tiny-pairs
    """
    table = run.tree.to_dataset()
    every = combinations(range(table.sizes["circuit"]), 2)
    rows = [_overlap(table.isel(circuit=i, other=j)) for i, j in every]
    cross = _cross(run.tree["cross"].to_dataset()) if "cross" in run.tree.children else []
    document = {"overlap": rows, "cross": cross}
    told = [{k: _three(v) if isinstance(v, float) else v for k, v in row.items()} for row in cross]
    show_run(run, document, Table(rows), *([Table(told)] if told else []))


def _bounds(table: xr.Dataset, name: str) -> dict[str, float] | None:
    """A value and its interval; None where it was not measured."""
    if name not in table:
        return None
    ends = {"value": name, "low": f"{name}_low", "high": f"{name}_high"}
    return {key: float(table[variable]) for key, variable in ends.items()}


def _overlap(at: xr.Dataset) -> dict[str, Any]:
    """What two circuits share."""
    shared = ("iou", "node_iou", "rank_correlation", "rank_overlap")
    return {
        "circuit": str(at["circuit"].values),
        "other": str(at["other"].values),
        **{name: float(at[name]) for name in shared},
        "p": float(at["overlap_p"].sel(null="layer-matched")),
    }


def _cross(table: xr.Dataset) -> list[dict[str, Any]]:
    """A row a circuit and set of pairs."""
    columns = {
        "faithfulness": "faithfulness",
        "faithfulness_low": "low",
        "faithfulness_high": "high",
        "completeness": "completeness",
    }
    found = table[list(columns)].reset_coords(drop=True).to_dataframe(["circuit", "pairs"])
    rows = found.rename(columns=columns).reset_index().to_dict("records")
    return [{str(k): v for k, v in row.items()} for row in rows]


def _three(value: float) -> str:
    """To three decimals: with fewer, .8994 would read as the .9 it misses."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _typed(name: str) -> bool:
    """Whether an option was given on the command line, not by a default or a configuration file."""
    source = click.get_current_context().get_parameter_source(name)
    return source is click.core.ParameterSource.COMMANDLINE


def _drop(values: dict[str, Any], without: str, *names: str) -> None:
    """Drop options that do nothing where another one is left out; refuse them if they were typed."""
    for name in names:
        if _typed(name):
            raise click.UsageError(f"--{name.replace('_', '-')} has no effect without {without}.")
        values[name] = None
