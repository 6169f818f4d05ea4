"""What commands have in common that go on from runs, use a split, or keep a run of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from refusal_nn.cli._progress import progress
from refusal_nn.cli._request import command_line, request
from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.runs import Keeping, Run

F = TypeVar("F", bound=Callable[..., Any])

SPLITS = ("train", "val", "test", "all")

input_model_option = click.option(
    "--model",
    metavar="MODEL",
    help="Default: the model the input run was made with; a folder has to be given again.",
)


def split_option(default: str) -> Callable[[F], F]:
    """``--split``."""
    return click.option(
        "--split",
        type=click.Choice(SPLITS),
        default=default,
        show_default=True,
        help="Split to use.",
    )


def split_of(prompts: Any, split: str) -> Any:
    """The prompts, or pairs, of a split, or all of them."""
    return prompts if split == "all" else getattr(prompts, split)


def load_prompts_of(kind: str, value: Any, split: str) -> Any:
    """Prompts or pairs by name or file, of one split; several as a mapping, None as it is.

    Parameters
    ----------
    kind : {"Prompts", "Pairs"}
    value : str, tuple of str or None
    split : str
    """
    from refusal_nn.prompts import check_disjoint, load_pairs, load_prompts

    if value is None:
        return None
    if isinstance(value, tuple):
        sets = [load_prompts_of(kind, one, split) for one in value]
        named = {some.name: some for some in sets}
        if len(named) < len(sets):
            raise click.UsageError("two sets of pairs have one name; rename a file.")
        return named
    if kind == "Pairs":
        return split_of(load_pairs(value), split)
    prompts = load_prompts(value)
    check_disjoint(prompts)
    return split_of(prompts, split)


def integers(text: str | None, name: str) -> list[int] | None:
    """Whole numbers from a list such as ``-3,-1``."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        what = "positions such as -3,-1" if name == "positions" else "whole numbers such as 3,4"
        raise click.BadParameter(
            f"{text!r} is not a list of {what}.", param_hint=f"--{name}"
        ) from None


@contextlib.contextmanager
def keeping(stores: Path, name: str | None, resume: bool) -> Iterator[Keeping]:
    """Where a command's run is kept, with progress on stderr."""
    from refusal_nn.runs import Keeping

    with progress() as report:
        yield Keeping(stores, name, request(), command_line(), resume, report)


def model_of(run: Run, name: str | None, loading: dict[str, Any]) -> Model:
    """The model an input run was made with, or the one asked for.

    Raises
    ------
    RequestError
        If the run was made with a folder that is to be given again.
    """
    from refusal_nn.models import load_model

    attrs = run.attrs
    if name is None:
        _check_findable(run.name, attrs["model"])
        loading = {**loading, "dtype": loading["dtype"] or attrs["dtype"]}
        loading["revision"] = loading["revision"] or attrs["revision"] or None
    return load_model(name or attrs["model"], **loading)


def _check_findable(run: str, model: str) -> None:
    """A run records no path, so a model that was a folder cannot be loaded from its name."""
    from refusal_nn.models import embedded_path

    if "/" not in model and embedded_path(model) is None and not Path(model).is_dir():
        raise RequestError(
            f"run {run!r} was made with model folder {model!r}, and runs do not record where that "
            "lies; pass --model PATH."
        )
