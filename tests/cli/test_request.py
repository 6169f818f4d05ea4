"""What was typed is recorded without this machine's paths, and nothing is made again from it."""

from __future__ import annotations

import shlex

import click
import pytest
from click.testing import CliRunner

from refusal_nn.cli import Root
from refusal_nn.cli._request import command_line


@click.group(cls=Root)
@click.option("--log-level")
def program(log_level: str | None) -> None:
    """A program with one command."""


@click.command()
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def typed(words: tuple[str, ...]) -> None:
    """Print what is recorded."""
    click.echo(command_line())


@pytest.fixture(autouse=True)
def _commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Root, "get_command", lambda self, ctx, name: {"typed": typed}.get(name))


def test_the_command_line_has_no_absolute_path() -> None:
    argv = ["typed", "--", "/data/a b.csv", "--stores=/home/me/stores", "rel/a b"]
    line = CliRunner().invoke(program, argv).stdout
    words = shlex.split(line)
    assert words[:3] == ["refusal-nn", "typed", "--"]
    assert words[3:] == ["a b.csv", "--stores=stores", "rel/a b"]
    assert "/home" not in line
    assert "/data" not in line


def test_every_word_and_the_root_options_are_in_it() -> None:
    argv = ["--log-level", "info", "typed", "--", "a b.csv", "-x"]
    line = CliRunner().invoke(program, argv).stdout
    assert shlex.split(line) == ["refusal-nn", *argv]
