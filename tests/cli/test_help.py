"""Help texts are recorded, one file a noun, so an option cannot change unseen.

The files in ``help/`` are remade by ``make golden``, which runs this file; with a
folder after its name it makes them there.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

GOLDEN = Path(__file__).parent / "help"
WIDTH = 100


def _texts(command: click.Command, context: click.Context) -> Iterator[str]:
    yield f"$ {context.command_path} --help\n\n{command.get_help(context)}\n"
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            below = click.Context(child, info_name=name, parent=context, **_SETTINGS)
            yield from _texts(child, below)


_SETTINGS = {
    "terminal_width": WIDTH,
    "max_content_width": WIDTH,
    "help_option_names": ["-h", "--help"],
}


def recorded() -> dict[str, str]:
    """File name to what it must hold."""
    from refusal_nn.cli import NOUNS, cli

    root = click.Context(cli, info_name="refusal-nn", **_SETTINGS)
    texts = {"refusal-nn.txt": f"$ refusal-nn --help\n\n{cli.get_help(root)}\n"}
    for noun in NOUNS:
        command = cli.get_command(root, noun)
        assert command is not None
        context = click.Context(command, info_name=noun, parent=root, **_SETTINGS)
        texts[f"{noun}.txt"] = "\n\n".join(_texts(command, context))
    return texts


def test_help_texts_are_as_recorded(tmp_path: Path) -> None:
    from tests.patience import limit

    # a process of its own: a command keeps its help option as the first context named it, and other
    # tests call commands without the root
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, timeout=limit(60))
    texts = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.txt")}
    assert {path.name for path in GOLDEN.glob("*.txt")} == set(texts)
    for name, text in texts.items():
        if (GOLDEN / name).read_text(encoding="utf-8") != text:
            pytest.fail(f"help/{name} differs from the program's help; remake with `make golden`")


def test_every_command_and_option_says_what_it_does() -> None:
    from refusal_nn.cli import cli

    def silent(command: click.Command, context: click.Context) -> list[str]:
        found = [] if command.help else [context.command_path]
        for param in command.params:
            if isinstance(param, click.Option) and not param.help:
                found.append(f"{context.command_path} {param.opts[-1]}")
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                found += silent(child, click.Context(child, info_name=name, parent=context))
        return found

    assert silent(cli, click.Context(cli, info_name="refusal-nn")) == []


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    import conftest  # noqa: F401 - makes refusal_nn.cli importable in a bare checkout

    folder = Path(sys.argv[1]) if sys.argv[1:] else GOLDEN
    for old in folder.glob("*.txt"):
        old.unlink()
    for file, content in recorded().items():
        (folder / file).write_text(content, encoding="utf-8")
