"""``refusal-nn direction``: find, score, select and test a refusal direction."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

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
from refusal_nn.cli._output import notice, print_json, print_table
from refusal_nn.cli._progress import progress
from refusal_nn.cli._request import command_line, request
from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from refusal_nn.recorded import Keeping, Run


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

input_model_option = click.option(
    "--model",
    metavar="MODEL",
    help="Default: the model the input run was made with; a folder has to be given again.",
)


def _thresholds(function: Any) -> Any:
    for option in reversed(thresholds):
        function = option(function)
    return function


@command.command(name="extract")
@analysis_options()
@click.option(
    "--split", default="train", show_default=True, help="Split to use: train, val, test or all."
)
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
    with _keeping(stores, name, resume) as keeping:
        run = extract_run(
            load_model(model, **loading),
            chosen,
            keeping,
            positions=_positions(positions),
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
    from refusal_nn.recorded import open_input

    source = open_input(stores, candidates, "direction-extract")
    loading = take_loading(options)
    chosen = _prompts(prompts, split)
    with _keeping(stores, name, resume) as keeping:
        run = score_run(_model_of(source, model, loading), source, chosen, keeping, **options)
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
    from refusal_nn.recorded import open_input

    source = open_input(stores, scores, "direction-score")
    loading = take_loading(options)
    with _keeping(stores, name, resume) as keeping:
        run, chosen = select_run(_model_of(source, model, loading), source, keeping, **options)
    attrs = run.tree.attrs
    selected = {k: attrs[k] for k in ("layer", "position", "bypass", "induce", "kl")}
    ties = [{"layer": tie.layer, "position": tie.position} for tie in chosen.near_ties]
    if as_json:
        print_json({"run": run.path, "selected": selected, "near_ties": ties})
        return
    print_table(["layer", "position", "bypass", "induce", "KL"], [list(selected.values())])
    for tie in ties:
        notice(f"near tie: layer {tie['layer']}, position {tie['position']}")
    _say(run)


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
    from refusal_nn.evaluation import rate_rows
    from refusal_nn.recorded import open_input

    source = open_input(stores, selected, "direction-select")
    loading = take_loading(options)
    chosen = _prompts(prompts, split)
    with _keeping(stores, name, resume) as keeping:
        run = evaluate_run(_model_of(source, model, loading), source, chosen, keeping, **options)
    rows = rate_rows(run.tree["rates"].to_dataset())
    if as_json:
        print_json({"run": run.path, "reused": run.reused, "refusal_rate": rows})
        return
    columns = ["intervention", "style", "refused", "low", "high", "n", "coherent"]
    print_table(columns, [list(row.values()) for row in rows])
    _say(run)


@contextlib.contextmanager
def _keeping(stores: Path, name: str | None, resume: bool) -> Iterator[Keeping]:
    from refusal_nn.recorded import Keeping

    with progress() as report:
        yield Keeping(stores, name, request(), command_line(), resume, report)


def _prompts(name: str, split: str) -> Any:
    from refusal_nn.prompts import check_disjoint, load_prompts

    prompts = load_prompts(name)
    check_disjoint(prompts)
    if split == "all":
        return prompts
    if split not in ("train", "val", "test"):
        raise click.BadParameter(f"{split!r} is not train, val, test or all.", param_hint="--split")
    return getattr(prompts, split)


def _model_of(run: Run, name: str | None, loading: dict[str, Any]) -> Any:
    """The model an input run was made with, or the one asked for; refuses another's run."""
    from refusal_nn.models import load_model
    from refusal_nn.recorded import same_model

    attrs = run.tree.attrs
    if name is None:
        _check_findable(run.name, attrs["model"])
        loading = {**loading, "dtype": loading["dtype"] or attrs["dtype"]}
        loading["revision"] = loading["revision"] or attrs["revision"] or None
    model = load_model(name or attrs["model"], **loading)
    same_model(run, model)
    return model


def _check_findable(run: str, model: str) -> None:
    """A run records no path, so a model that was a folder cannot be loaded from its name."""
    from refusal_nn.models import embedded_path

    if "/" not in model and embedded_path(model) is None and not Path(model).is_dir():
        raise RequestError(
            f"run {run!r} was made with model folder {model!r}, and runs do not record where that "
            "lies; pass --model PATH."
        )


def _positions(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not a list of positions such as -3,-1.", param_hint="--positions"
        ) from None


def _say(run: Run) -> None:
    state = "already complete" if run.reused else "wrote"
    notice(f"{state}: {run.path}")


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
    _say(run)
