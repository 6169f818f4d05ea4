"""What commands that go on from a run have in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from refusal_nn.cli._progress import progress
from refusal_nn.cli._request import command_line, request

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.recorded import Keeping, Run

SPLITS = ("train", "val", "test", "all")

input_model_option = click.option(
    "--model", metavar="MODEL", help="Default: the model the input run was made with."
)


@contextlib.contextmanager
def keeping(stores: Path, name: str | None, resume: bool) -> Iterator[Keeping]:
    """Where a command's run is kept, with progress on stderr."""
    from refusal_nn.recorded import Keeping

    with progress() as report:
        yield Keeping(stores, name, request(), command_line(), resume, report)


def model_of(run: Run, name: str | None, loading: dict[str, Any]) -> Model:
    """The model an input run was made with, or the one asked for.

    Raises
    ------
    RequestError
        If the run was made with another model than the one asked for.
    """
    from refusal_nn.models import load_model
    from refusal_nn.recorded import same_model

    attrs = run.tree.attrs
    if name is None:
        loading = {**loading, "dtype": loading["dtype"] or attrs["dtype"]}
        loading["revision"] = loading["revision"] or attrs["revision"] or None
    model = load_model(name or attrs["model"], **loading)
    same_model(run, model)
    return model


def pairs_of_split(source: str, split: str) -> Pairs:
    """Contrast pairs by name or file, of one split or all."""
    from refusal_nn.prompts import load_pairs

    pairs = load_pairs(source)
    if split == "all":
        return pairs
    found: Pairs = getattr(pairs, split)
    return found
