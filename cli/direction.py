"""``refusal-nn direction``: find, score, select and test a refusal direction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._analysis import analysis_command, show_sizes
from refusal_nn.cli._output import notice, notice_run, print_json, print_table

if TYPE_CHECKING:
    from refusal_nn.runs import Run


@click.group(name="direction")
def command() -> None:
    """Find the direction that mediates refusal: extract, score, select, evaluate."""


THRESHOLDS: dict[str, dict[str, Any]] = {
    "kl_max": {"help": "Largest KL, in nats."},
    "induce_min": {"help": "Least induce score."},
    "layer_fraction": {
        "type": click.FloatRange(0, 1, min_open=True),
        "help": "Layers from int(fraction x layers) on are left out.",
    },
}
SCREEN = {"help": "Use only prompts that the model refuses or answers as their label says."}


def _show_extracted(run: Run, as_json: bool) -> None:
    show_sizes(run, as_json, ("refusal_token_texts", "n_layers"))


def _show_selected(run: Run, as_json: bool) -> None:
    selected = {k: run.attrs[k] for k in ("layer", "position", "bypass", "induce", "kl")}
    table = run.tree.to_dataset()
    near = table["bypass"].where(table["near_tie"]).stack(candidate=("position", "layer"))
    near = near.dropna("candidate").sortby(near.dropna("candidate"))
    ties = [{"layer": int(c["layer"]), "position": int(c["position"])} for c in near["candidate"]]
    if as_json:
        print_json({"run": run.path, "selected": selected, "near_ties": ties})
        return
    print_table(["layer", "position", "bypass", "induce", "KL"], [list(selected.values())])
    for tie in ties:
        notice(f"near tie: layer {tie['layer']}, position {tie['position']}")
    notice_run(run)


def _show_rates(run: Run, as_json: bool) -> None:
    from refusal_nn.responses import rate_rows

    rows = rate_rows(run.tree["rates"].to_dataset())
    if as_json:
        print_json({"run": run.path, "reused": run.reused, "refusal_rate": rows})
        return
    columns = ["intervention", "style", "refused", "low", "high", "n", "coherent"]
    print_table(columns, [list(row.values()) for row in rows])
    notice_run(run)


command.add_command(
    analysis_command(
        "refusal_nn.directions._extract:extract",
        "extract",
        options={
            "method": {"help": "How candidates are made."},
            "positions": {
                "help": "Positions from the prompt's end, such as -3,-1; default: the "
                "end-of-instruction span."
            },
            "refusal_tokens": {
                "metavar": "LIST",
                "help": "Token texts or ids; default: found from the model.",
            },
            "screen": SCREEN,
        },
        show=_show_extracted,
        text="""Extract candidate directions: one for each layer and end-of-instruction position.

    \b
    Example usage:
      refusal-nn direction extract --model tiny-refuser --prompts tiny-bench
    """,
    )
)
command.add_command(
    analysis_command(
        "refusal_nn.directions._score:score",
        "score",
        options={
            **THRESHOLDS,
            "exhaustive": {"help": "Measure every candidate on every criterion."},
            "screen": SCREEN,
        },
        text="""Score the candidates of run CANDIDATES: bypass, induce and KL on selection prompts.

    A candidate that one criterion rules out is not measured on the others.

    \b
    Example usage:
      refusal-nn direction score RUN --prompts tiny-bench
    """,
    )
)
command.add_command(
    analysis_command(
        "refusal_nn.directions._select:select",
        "select",
        options=THRESHOLDS,
        show=_show_selected,
        text="""Select a direction from run SCORES by the published rule; exit 1 if none is admissible.

    Among candidates before layer int(0.8 L) with KL at most 0.1 and induce at least 0, the one with
    the smallest bypass score wins. Candidates that cannot be told from it are named.

    \b
    Example usage:
      refusal-nn direction select RUN
    """,
    )
)
command.add_command(
    analysis_command(
        "refusal_nn.directions._evaluate:evaluate_selected",
        "evaluate",
        options={
            "max_new_tokens": {
                "type": click.IntRange(min=1),
                "metavar": "N",
                "help": "Length of the completions.",
            },
            "controls": {"help": "Test random directions of equal norm beside it."},
        },
        show=_show_rates,
        text="""Test the direction of run SELECTED: baseline, ablation, addition and random directions.

    \b
    Example usage:
      refusal-nn direction evaluate RUN --prompts tiny-bench
    """,
    )
)
