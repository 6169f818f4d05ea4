"""``refusal-nn circuit export`` and ``show``: a circuit as a file, a drawing or a table."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._options import config_option, json_option, output_option, stores_option
from refusal_nn.cli._output import Table, show
from refusal_nn.cli._types import Real, Whole

if TYPE_CHECKING:
    from refusal_nn.circuits import Circuit
    from refusal_nn.runs import Run

FORMATS = ("eap-ig-json", "eap-ig-pt", "graphml", "dot", "neuronpedia")

consensus_option = click.option(
    "--consensus",
    type=Real(0, 1, min_open=True),
    metavar="SHARE",
    help="The edges that at least this share of resamples keep, instead of the circuit.",
)


@click.command(name="export")
@click.argument("circuit")
@output_option(required=True, help="The file; it must not exist.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="Default: by the ending of --output: .json and .pt as EAP-IG, .graphml, .dot.",
)
@consensus_option
@stores_option
@config_option
@json_option
def export_command(
    circuit: str, output: Path, format_: str | None, consensus: float | None, stores: Path
) -> None:
    """Write the circuit of run CIRCUIT for another program.

    \b
    Example usage:
      refusal-nn circuit export RUN --output circuit.graphml
      refusal-nn circuit export RUN --output graph.json --format neuronpedia
    """
    from refusal_nn.circuits import export

    run, found = _opened(stores, circuit, consensus)
    known = ("model", "weights_hash", "tokenizer_hash")
    model = {key: run.attrs[key] for key in known if key in run.attrs}
    path = export(found, output, format_, d_model=run.attrs.get("d_model"), model=model)
    show(
        {"file": path, "run": run.path, "edges": _size(found)},
        path,
        notices=[f"{found.n_kept} of {found.n_total} edges from {run.name}"],
    )


@click.command(name="show")
@click.argument("circuit")
@click.option(
    "--edges",
    type=Whole(min=0),
    default=20,
    show_default=True,
    metavar="N",
    help="List the N strongest edges; --json lists all.",
)
@output_option(help="Draw the circuit: .svg, .png or .pdf.")
@consensus_option
@stores_option
@config_option
@json_option
def show_command(
    circuit: str, edges: int, output: Path | None, consensus: float | None, stores: Path
) -> None:
    """Show the circuit of run CIRCUIT: its size, its strongest edges and, on request, a drawing.

    A score is the change of the metric when the edge is corrupted.

    \b
    Example usage:
      refusal-nn circuit show RUN
      refusal-nn circuit show RUN --output circuit.svg
    """
    run, found = _opened(stores, circuit, consensus)
    drawn = {} if output is None else {"drawing": output}
    if output is not None:
        from refusal_nn import plots

        plots.save(plots.circuit_drawing(found.to_dataset()), output)
    rows = _edges(found)
    more = f"; {len(rows) - edges} more edges" if len(rows) > edges else ""
    show(
        {"run": run.path, "edges": _size(found), "nodes": found.nodes, "circuit": rows, **drawn},
        Table([row.values() for row in rows[:edges]], ["from", "into", "score"]),
        notices=[
            f"{found.n_kept} of {found.n_total} edges, {len(found.nodes)} nodes{more}",
            *(f"drew: {path}" for path in drawn.values()),
        ],
    )


def _opened(stores: Path, name: str, consensus: float | None) -> tuple[Run, Circuit]:
    from refusal_nn import circuits
    from refusal_nn.errors import RequestError
    from refusal_nn.runs import open_run

    run = open_run(stores, name, "circuit-discover")
    found = circuits.circuit_of(run)
    if consensus is None:
        return run, found
    if "stability" not in run.tree.children:
        raise RequestError(
            f"run {run.name!r} has no resamples to take a consensus of; discover the circuit again "
            "with --resamples."
        )
    table = run.tree["stability"].to_dataset().load()
    return run, circuits.consensus(table, found, share=consensus)


def _size(circuit: Circuit) -> dict[str, int]:
    return {"kept": circuit.n_kept, "total": circuit.n_total}


def _edges(circuit: Circuit) -> list[dict[str, Any]]:
    """Edges by ``|score|``, the strongest first."""
    scores: list[float | None] = [None] * circuit.n_kept
    if circuit.scores is not None:
        scores = circuit.scores[circuit.kept].tolist()
    rows = [
        {"src": src, "dst": dst, "score": score}
        for (src, dst), score in zip(circuit.edges(), scores, strict=True)
    ]
    return sorted(rows, key=lambda row: -abs(row["score"] or 0.0))
