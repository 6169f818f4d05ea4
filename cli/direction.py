"""``refusal-nn direction``: find, score, select and test a refusal direction."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._inputs import (
    input_model_option,
    integers,
    keeping,
    model_of,
    split_of,
    split_option,
)
from refusal_nn.cli._options import (
    analysis_options,
    batch_size_option,
    config_option,
    json_option,
    loading_options,
    prompts_option,
    run_options,
    seed_option,
    take_loading,
)
from refusal_nn.cli._output import notice, notice_run, print_json, print_table

if TYPE_CHECKING:
    from refusal_nn.runs import Run


@click.group(name="direction")
def command() -> None:
    """Find the direction that mediates refusal: extract, score, select, evaluate."""


thresholds = (
    click.option(
        "--kl-max", type=float, default=0.1, show_default=True, help="Largest KL, in nats."
    ),
    click.option(
        "--induce-min", type=float, default=0.0, show_default=True, help="Least induce score."
    ),
    click.option(
        "--layer-fraction",
        type=click.FloatRange(0, 1, min_open=True),
        default=0.8,
        show_default=True,
        help="Layers from int(fraction x layers) on are left out.",
    ),
)

screen_option = click.option(
    "--screen/--no-screen",
    default=True,
    show_default=True,
    help="Use only prompts that the model refuses or answers as their label says.",
)


def _thresholds(function: Any) -> Any:
    for option in reversed(thresholds):
        function = option(function)
    return function


@command.command(name="extract")
@analysis_options()
@split_option("train")
@click.option(
    "--method",
    type=click.Choice(["difference-in-means"]),
    default="difference-in-means",
    show_default=True,
    help="How candidates are made.",
)
@click.option(
    "--positions",
    metavar="LIST",
    help="Positions from the prompt's end, such as -3,-1; default: the end-of-instruction span.",
)
@click.option(
    "--refusal-tokens", metavar="LIST", help="Token texts or ids; default: found from the model."
)
@screen_option
def extract_command(
    model: str,
    prompts: str,
    split: str,
    positions: str | None,
    seed: int,
    as_json: bool,
    stores: Path,
    name: str | None,
    resume: bool,
    **options: Any,
) -> None:
    """Extract candidate directions: one for each layer and end-of-instruction position.

    \b
    Example usage:
      refusal-nn direction extract --model tiny-refuser --prompts tiny-bench
    """
    from refusal_nn.directions import extract_run
    from refusal_nn.models import load_model

    loading = take_loading(options)
    chosen = _prompts(prompts, split)
    with keeping(stores, name, resume) as where:
        run = extract_run(
            load_model(model, **loading),
            chosen,
            where,
            positions=integers(positions, "--positions", "positions such as -3,-1"),
            seed=seed,
            **options,
        )
    _report(run, as_json, ("refusal_token_texts", "n_layers"))


@command.command(name="score")
@click.argument("candidates")
@input_model_option
@loading_options
@prompts_option()
@click.option("--split", default="val", show_default=True, help="Split to use.")
@_thresholds
@click.option("--exhaustive", is_flag=True, help="Measure every candidate on every criterion.")
@screen_option
@batch_size_option
@run_options
@config_option
@json_option
def score_command(
    candidates: str,
    model: str | None,
    prompts: str,
    split: str,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Score the candidates of run CANDIDATES: bypass, induce and KL on selection prompts.

    A candidate that one criterion rules out is not measured on the others.

    \b
    Example usage:
      refusal-nn direction score RUN --prompts tiny-bench
    """
    from refusal_nn.directions import score_run
    from refusal_nn.runs import open_input

    source = open_input(stores, candidates, "direction-extract")
    loading = take_loading(options)
    chosen = _prompts(prompts, split)
    with keeping(stores, name, resume) as where:
        run = score_run(model_of(source, model, loading), source, chosen, where, **options)
    _report(run, as_json, ())


@command.command(name="select")
@click.argument("scores")
@input_model_option
@loading_options
@_thresholds
@run_options
@config_option
@json_option
def select_command(
    scores: str,
    model: str | None,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Select a direction from run SCORES by the published rule; exit 1 if none is admissible.

    Among candidates before layer int(0.8 L) with KL at most 0.1 and induce at least 0, the one with
    the smallest bypass score wins. Candidates that cannot be told from it are named.

    \b
    Example usage:
      refusal-nn direction select RUN
    """
    from refusal_nn.directions import select_run
    from refusal_nn.runs import open_input

    source = open_input(stores, scores, "direction-score")
    loading = take_loading(options)
    with keeping(stores, name, resume) as where:
        run, chosen = select_run(model_of(source, model, loading), source, where, **options)
    attrs = run.tree.attrs
    selected = {k: attrs[k] for k in ("layer", "position", "bypass", "induce", "kl")}
    ties = [{"layer": tie.layer, "position": tie.position} for tie in chosen.near_ties]
    if as_json:
        print_json({"run": run.path, "selected": selected, "near_ties": ties})
        return
    print_table(["layer", "position", "bypass", "induce", "KL"], [list(selected.values())])
    for tie in ties:
        notice(f"near tie: layer {tie['layer']}, position {tie['position']}")
    notice_run(run)


@command.command(name="evaluate")
@click.argument("selected")
@input_model_option
@loading_options
@prompts_option()
@click.option("--split", default="test", show_default=True, help="Split to use.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Length of the completions.",
)
@click.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Test random directions of equal norm beside it.",
)
@batch_size_option
@seed_option
@run_options
@config_option
@json_option
def evaluate_command(
    selected: str,
    model: str | None,
    prompts: str,
    split: str,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Test the direction of run SELECTED: baseline, ablation, addition and random directions.

    \b
    Example usage:
      refusal-nn direction evaluate RUN --prompts tiny-bench
    """
    from refusal_nn.directions import evaluate_run
    from refusal_nn.responses import rate_rows
    from refusal_nn.runs import open_input

    source = open_input(stores, selected, "direction-select")
    loading = take_loading(options)
    chosen = _prompts(prompts, split)
    with keeping(stores, name, resume) as where:
        run = evaluate_run(model_of(source, model, loading), source, chosen, where, **options)
    rows = rate_rows(run.tree["rates"].to_dataset())
    if as_json:
        print_json({"run": run.path, "reused": run.reused, "refusal_rate": rows})
        return
    columns = ["intervention", "style", "refused", "low", "high", "n", "coherent"]
    print_table(columns, [list(row.values()) for row in rows])
    notice_run(run)


def _prompts(name: str, split: str) -> Any:
    from refusal_nn.prompts import check_disjoint, load_prompts

    prompts = load_prompts(name)
    check_disjoint(prompts)
    return split_of(prompts, split)


def _report(run: Run, as_json: bool, shown: tuple[str, ...]) -> None:
    """What a run holds, for commands whose result is a table of candidates."""
    attrs = run.tree.attrs
    sizes = {str(k): int(v) for k, v in run.tree.to_dataset().sizes.items()}
    if as_json:
        extra = {key: attrs[key] for key in shown}
        print_json({"run": run.path, "reused": run.reused, "sizes": sizes, **extra})
        return
    rows = [("model", attrs["model"]), *((k, attrs[k]) for k in shown), *sizes.items()]
    print_table(["property", "value"], [(k, str(v)) for k, v in rows])
    notice_run(run)
