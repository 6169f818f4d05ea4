"""What commands have in common that go on from runs, use a split, or keep a run of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._progress import progress
from refusal_nn.cli._request import command_line

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.runs import Keeping, Run

split_option = partial(
    click.option,
    "--split",
    type=click.Choice(("train", "val", "test", "all")),
    show_default=True,
    help="Split to use.",
)
"""``--split``; takes what else :func:`click.option` does."""


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
        found: Any = load_pairs(value)
    else:
        found = load_prompts(value)
        check_disjoint(found)
    return found if split == "all" else getattr(found, split)


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
        yield Keeping(stores, name, command_line(), resume, report)


def model_of(inputs: Sequence[Run], name: str | None, loading: dict[str, Any]) -> Model:
    """The model asked for, or the one that the first input run was made with.

    Raises
    ------
    RequestError
        If the run was made with a folder that is to be given again, or its code is to be run.
    """
    from refusal_nn.models import load_model
    from refusal_nn.runs import recorded_model

    if name is None:
        run, attrs = inputs[0].name, inputs[0].attrs
        name = recorded_model(run, str(attrs["model"]), trusted=loading["trust_remote_code"])
        loading = {**loading, "dtype": loading["dtype"] or attrs["dtype"]}
        loading["revision"] = loading["revision"] or attrs["revision"] or None
    return load_model(name, **loading)
