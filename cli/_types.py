"""Types of option values: numbers that can be computed with, places that can be written to."""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from refusal_nn._files import quoted

LARGEST = 2**31 - 1
"""The largest whole number that an option takes, unless it says otherwise."""


class _Bounded(click.ParamType):
    """A number that can be computed with: finite, and no further from zero than ``largest``."""

    largest: float = math.inf

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        if isinstance(number, float) and not math.isfinite(number):
            self.fail(f"it is {number}; give a finite number.", param, ctx)
        if abs(number) > self.largest:
            self.fail(f"{number:.6g} is too large; give at most {self.largest:.10g}.", param, ctx)
        return number


class Whole(_Bounded, click.IntRange):
    """A whole number within bounds, and no larger than can be counted to; parameters of click's.

    Parameters
    ----------
    largest : int
        What help pages do not mention.
    """

    def __init__(self, *args: Any, largest: int = LARGEST, **more: Any) -> None:
        super().__init__(*args, **more)
        self.largest = largest


class Real(_Bounded, click.FloatRange):
    """A number within bounds: neither infinite nor NaN; parameters as :class:`Whole`."""

    def __init__(self, *args: Any, largest: float = math.inf, **more: Any) -> None:
        super().__init__(*args, **more)
        self.largest = largest


class AnyWhole(_Bounded, type(click.INT)):  # type: ignore[misc]
    """A whole number of either sign, as :class:`Whole`."""

    largest = LARGEST


class AnyReal(_Bounded, type(click.FLOAT)):  # type: ignore[misc]
    """A number that is neither infinite nor NaN."""


class Folder(click.Path):
    """A folder that is there, or can be made: what is in its way is said before anything is done."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """The path."""
        path = _free(self, Path(os.fsdecode(super().convert(value, param, ctx))), param, ctx)
        if path.exists() and not path.is_dir():  # a device
            self.fail(f"{quoted(path)} is no folder; choose another.", param, ctx)
        return path


class NewFile(click.Path):
    """A plain file to write; its folder is there, or can be made. One that exists is named by typing."""

    def __init__(self) -> None:
        super().__init__(dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        """The path."""
        path = _free(self, Path(os.fsdecode(super().convert(value, param, ctx))), param, ctx)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            self.fail(f"{quoted(path)} is no plain file; choose another.", param, ctx)
        source = ctx and param and ctx.get_parameter_source(param.name)
        if source is ParameterSource.DEFAULT_MAP and path.exists():
            text = (
                f"{quoted(path)} exists, and a config file may not replace a file; type the option."
            )
            self.fail(text, param, ctx)
        if not path.name:
            self.fail(f"{quoted(path)} is no file; choose another.", param, ctx)
        return path


def _free(kind: click.ParamType, path: Path, param: Any, ctx: Any) -> Path:
    """A path that the system can write to: names of a length it knows, folders where folders must be."""
    try:
        path.exists()  # of a loop of links, False
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        kind.fail(f"{quoted(path)}: {error.strerror}; choose another.", param, ctx)
    there = next((parent for parent in path.parents if parent.exists()), None)
    if there is not None and not there.is_dir():
        kind.fail(f"{quoted(there)} is a file, so {quoted(path)} cannot be made.", param, ctx)
    if there is not None and not path.exists() and not os.access(there, os.W_OK | os.X_OK):
        kind.fail(f"{quoted(there)} cannot be written to; choose another.", param, ctx)
    return path
