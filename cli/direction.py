"""``refusal-nn direction``: find, score, select and test a refusal direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from refusal_nn.cli._analysis import analysis_command, show_sizes
from refusal_nn.cli._output import Table, show_run

if TYPE_CHECKING:
    from refusal_nn.runs import Run


@click.group(name="direction")
def command() -> None:
    """Find the direction that mediates refusal: extract, score, select, evaluate."""


@analysis_command("refusal_nn.directions._extract:extract", "extract", group=command)
def extract(run: Run) -> None:
    """Extract candidate directions: one for each layer and end-of-instruction position.

    \b
    Example usage:
      refusal-nn direction extract --model tiny-refuser --prompts tiny-bench
    """
    show_sizes(run, "refusal_token_texts", "n_layers")


@analysis_command(
    "refusal_nn.directions._score:score", "score", group=command, hidden=["refusal_tokens"]
)
def score(run: Run) -> None:
    """Score the candidates of run CANDIDATES: bypass, induce and KL on selection prompts.

    A candidate that one criterion rules out is not measured on the others.

    \b
    Example usage:
      refusal-nn direction score RUN --prompts tiny-bench
    """
    show_sizes(run)


@analysis_command(
    "refusal_nn.directions._select:select",
    "select",
    group=command,
    hidden=["tie_tolerance", "confidence"],
)
def select(run: Run) -> None:
    """Select a direction from run SCORES by the published rule; exit 1 if none is admissible.

    Among candidates before layer int(0.8 L) with KL at most 0.1 and induce at least 0, the one with
    the smallest bypass score wins. Candidates that cannot be told from it are named.

    \b
    Example usage:
      refusal-nn direction select RUN
    """
    selected = {k: run.attrs[k] for k in ("layer", "position", "bypass", "induce", "kl")}
    table = run.tree.to_dataset()
    near = table["bypass"].where(table["near_tie"]).stack(candidate=("position", "layer"))
    near = near.dropna("candidate")
    places = near.sortby(near)["candidate"]
    ties = [{"layer": int(at["layer"]), "position": int(at["position"])} for at in places]
    show_run(
        run,
        {"selected": selected, "near_ties": ties},
        Table([selected.values()], ["layer", "position", "bypass", "induce", "KL"]),
        notices=["near tie: layer {layer}, position {position}".format(**tie) for tie in ties],
    )


@analysis_command(
    "refusal_nn.directions._evaluate:evaluate_selected",
    "evaluate",
    group=command,
    options={"max_new_tokens": {"metavar": "N"}},
)
def evaluate(run: Run) -> None:
    """Test the direction of run SELECTED: baseline, ablation, addition and random directions.

    \b
    Example usage:
      refusal-nn direction evaluate RUN --prompts tiny-bench
    """
    from refusal_nn.responses import rate_rows

    rows = rate_rows(run.tree["rates"].to_dataset())
    columns = ["intervention", "style", "refused", "low", "high", "n", "coherent"]
    show_run(run, {"refusal_rate": rows}, Table([row.values() for row in rows], columns))
