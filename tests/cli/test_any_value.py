"""Any value of any option of any command ends the command in one sentence that names what is wrong.

Made from the commands themselves, so a new option is tried as well. What needs a model is refused when
it is loaded: here it matters what stands before that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from refusal_nn.cli import NOUNS, cli
from refusal_nn.cli._types import Folder, NewFile
from refusal_nn.errors import ModelError
from tests.store.synthetic import analyse, provenance

NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-0",
    "1" + "0" * 30,
    "-1" + "0" * 30,
    "1" * 5000,
    "0x10",
    "1,,2",
)
TEXTS = (
    "",
    "\0",
    "a\0b",
    "\udcff",
    "x" * 5000,
    "\x1b[2J\x1b]0;title\x07",
    "a\nb",
    "‮x",
    "../../x",
    "-",
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/null/x")
PLACES = ("file", "file/x", "folder", "pipe", "loop", *DEVICES, "x" * 300, "a/" * 3000)
REFUSED = "no model is loaded here; give none."


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(cli)
    for noun in NOUNS:
        command = cli.get_command(context, noun)
        assert command is not None
        if isinstance(command, click.Group):
            for verb in command.list_commands(context):
                found = command.get_command(context, verb)
                assert found is not None
                yield (noun, verb), found
        else:
            yield (noun,), command


CASES = [
    pytest.param(words, command, option, id=f"{' '.join(words)} {option.opts[-1]}")
    for words, command in commands()
    for option in command.params
    if isinstance(option, click.Option) and not option.is_flag and option.name != "help"
    if words != ("remote", "status")  # asks a server
]


def values_of(option: click.Option) -> tuple[str, ...]:
    if option.type.name in ("integer", "float", "integer range", "float range"):
        return (*NUMBERS, *TEXTS[:4])
    if isinstance(option.type, Folder | NewFile | click.Path):
        return (*PLACES, *TEXTS)
    return (*TEXTS, *NUMBERS[:4], *PLACES[:6])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("values")
    (base / "file").write_text("a text", encoding="utf-8")
    (base / "folder").mkdir()
    (base / "loop").symlink_to("loop")
    os.mkfifo(base / "pipe")
    return base


@pytest.fixture(autouse=True)
def _no_model(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ModelError(REFUSED)

    monkeypatch.chdir(folder)
    monkeypatch.setattr("refusal_nn.models.load_model", refuse)
    for variable in ("NDIF_HOST", "NDIF_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


def required(command: click.Command, *, but: str) -> list[str]:
    """Words for what a command cannot do without."""
    words: list[str] = []
    for parameter in command.params:
        if not parameter.required or parameter.name == but:
            continue
        value = "new.svg" if isinstance(parameter.type, NewFile) else "none"
        words += [value] if isinstance(parameter, click.Argument) else [parameter.opts[-1], value]
    return words


def says(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [*words, "--json"])
    assert done.exit_code in (0, 1, 2), (words, done.output)
    assert isinstance(done.exception, SystemExit | None), (words, done.exception)
    document = json.loads(done.stdout)
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.output
    assert "\x07" not in done.output
    if done.exit_code == 0 or not isinstance(document, dict) or "error" not in document:
        return done.exit_code, ""
    error = document["error"]
    assert error["kind"] != "bug", (words, error)
    assert len(error["message"]) < 5000
    assert done.stderr.strip("\n").splitlines()[-1].startswith("Error: ")
    return done.exit_code, error["message"]


@pytest.mark.parametrize(("words", "command", "option"), CASES)
def test_a_value_is_taken_or_refused_in_a_sentence(
    words: tuple[str, ...], command: click.Command, option: click.Option, folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    for value in values_of(option):
        code, message = says(
            *words, *required(command, but=str(option.name)), f"{option.opts[-1]}={value}"
        )
        if value in ("nan", "inf", "-inf", "1e999") and "float" in option.type.name:
            assert code == 2
            assert option.opts[-1] in message
        if value in ("", "\0", "a\0b", "\udcff"):
            assert code == 2
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("value", [*TEXTS, *PLACES])
@pytest.mark.parametrize(
    ("words", "command"),
    [
        pytest.param(words, command, id=" ".join(words))
        for words, command in commands()
        if any(isinstance(parameter, click.Argument) for parameter in command.params)
    ],
)
def test_an_argument_is_taken_or_refused_in_a_sentence(
    words: tuple[str, ...], command: click.Command, value: str, folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    options = [p for p in command.params if isinstance(p, click.Option)]
    needed = required(click.Command("x", params=list(options)), but="")
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    says(*words, *needed, *[value if value != "-" else "x"] * len(arguments))
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("length", [200, 201, 300, 5000])
def test_a_name_is_as_long_as_the_names_of_its_files_may_be(tmp_path: Path, length: int) -> None:
    from refusal_nn import Keeping, store
    from refusal_nn.errors import RequestError

    if length > 200:
        with pytest.raises(RequestError, match=rf"has {length} characters; .* at most 200"):
            Keeping(tmp_path, "x" * length)
        return
    Keeping(tmp_path, "x" * length)
    path = tmp_path / f"{'x' * length}.zarr"
    facts = {"fingerprint": "f" * 64, "provenance": provenance(), "request": {}}
    with store.RunRecorder(path, **facts) as recorder:
        analyse(recorder)
    store.verify(path)


def test_a_name_made_from_a_long_model_name_is_short_enough() -> None:
    from refusal_nn.runs._keeping import LONGEST_NAME
    from refusal_nn.store import default_name

    names = {default_name("direction", "extract", "m" * 5000, f"{k:064x}"[::-1]) for k in range(3)}
    assert len(names) == 3
    assert max(map(len, names)) <= LONGEST_NAME
