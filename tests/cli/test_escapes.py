"""What is printed for people quotes files of strangers: nothing in it steers a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from refusal_nn.cli import Root, cli
from refusal_nn.cli._options import json_option
from refusal_nn.cli._output import Table, confirm, notice, show
from refusal_nn.errors import RequestError
from tests.patience import limit

PAYLOAD = "a\x1b]0;title\x07\x1b[2J\r\x9b31m\x7f\x08\u202eb\u2028\ud800[bold][/x]\nforged: ok"
"""Title, clear screen, return, C1, delete, backspace, a direction mark, line ends, half a character."""
STEERS = [c for c in PAYLOAD if not c.isprintable() and c != "\n"]


def printing(print_it: Callable[[], None], *words: str, answer: str = "") -> Result:
    @click.group(cls=Root)
    def program() -> None:
        """A program."""

    @click.command()
    @json_option
    def verb() -> None:
        print_it()

    program.get_command = lambda ctx, name: verb  # type: ignore[method-assign]
    return CliRunner().invoke(program, ["verb", *words], input=answer)


def refuse() -> None:
    raise RequestError(f"{PAYLOAD} is wrong; try {PAYLOAD}.")


def misuse() -> None:
    raise click.BadParameter(f"{PAYLOAD} is no value.", param_hint=PAYLOAD)


@pytest.mark.parametrize(
    "print_it",
    [
        lambda: show(None, PAYLOAD),
        lambda: show(None, Path(PAYLOAD)),
        lambda: show(None, notices=[PAYLOAD]),
        lambda: show(None, Table([[PAYLOAD]], ["name"])),
        lambda: show(None, Table([["x"]], [PAYLOAD])),
        lambda: show(None, Table([{PAYLOAD: PAYLOAD}])),
        lambda: show(None, Table([["x"]], ["name"], title=PAYLOAD)),
        lambda: show(None, Table([], empty=PAYLOAD)),
        lambda: notice(PAYLOAD),
        lambda: confirm(PAYLOAD),
        refuse,
        misuse,
    ],
)
def test_a_payload_is_shown_and_not_sent(print_it: Callable[[], None]) -> None:
    done = printing(print_it, answer="y\n")
    assert "bug" not in done.output
    assert "\\x1b]0;title\\x07" in done.output
    assert "[bold][/x]" in done.output
    assert not [character for character in STEERS if character in done.output]
    assert not [line for line in done.output.splitlines() if line.startswith("forged")]


@pytest.mark.parametrize(
    "print_it", [lambda: show({PAYLOAD: [PAYLOAD], "n": {1: None, None: 10**30}}), refuse, misuse]
)
def test_json_keeps_every_character_and_sends_none(print_it: Callable[[], None]) -> None:
    done = printing(print_it, "--json")
    assert not [character for character in STEERS if character in done.output]
    document = json.loads(done.stdout)
    if "error" in document:
        assert PAYLOAD in document["error"]["message"]
    else:
        assert document == {PAYLOAD: [PAYLOAD], "n": {"1": None, "None": 10**30}}


def test_a_number_too_long_to_write_is_null() -> None:
    assert json.loads(printing(lambda: show([10**5000]), "--json").stdout) == [None]


def test_progress_shows_the_words_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    code = (
        "import conftest\n"
        "from refusal_nn.cli._progress import progress\n"
        "with progress() as report:\n"
        f"    report({PAYLOAD[:-20]!r}, 0, 2); report.status({PAYLOAD[:-20]!r})\n"
    )
    root = Path(__file__).parents[2]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "400"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        stderr=theirs,
        env=env,
        timeout=limit(20),
        check=False,
    )
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert "\\x1b]0;title" in shown
    assert not {"\x1b]0;title", "\x07", "\x1b[2J", "\x9b", "\u202e"} & {
        part for part in ("\x1b]0;title", "\x07", "\x1b[2J", "\x9b", "\u202e") if part in shown
    }


def process(
    code: str, *words: str, stdout: Any = subprocess.PIPE, **more: str
) -> subprocess.CompletedProcess[bytes]:
    root = Path(__file__).parents[2]
    text = f"import conftest, sys\nfrom refusal_nn.cli import main\n{code}\nmain()"
    return subprocess.run(
        [sys.executable, "-c", text, *words],
        cwd=root,
        env={**os.environ, **more},
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=limit(30),
        check=False,
    )


def test_logs_and_warnings_are_escaped_lines() -> None:
    said = repr(PAYLOAD.replace("\ud800", ""))
    code = (
        "import logging, warnings, refusal_nn.models as m\n"
        "class Has(dict):\n"
        "    def items(self):\n"
        f"        logging.getLogger('refusal_nn.x').warning({said})\n"
        "        theirs = logging.getLogger('theirs'); theirs.propagate = False\n"
        "        theirs.addHandler(logging.StreamHandler())\n"
        f"        theirs.error('%s', {said})\n"
        f"        warnings.warn({said})\n"
        "        return {}.items()\n"
        "m.EMBEDDED = Has()"
    )
    done = process(code, "models", "list")
    lines = done.stderr.decode().strip("\n").split("\n")
    assert done.returncode == 0, lines
    assert [line for line in lines if "title" in line] == lines[:3]
    assert "WARNING refusal_nn.x: a\\x1b" in lines[0]
    assert lines[2].startswith("UserWarning: a\\x1b")
    assert not [c for c in STEERS if c in done.stderr.decode()]


@pytest.mark.parametrize(
    "given",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_an_encoding_that_lacks_a_character_writes_it_otherwise(given: dict[str, str]) -> None:
    model = {"“é”": "漢字 😀"}
    code = f"import refusal_nn.models as m; m.EMBEDDED = {model!a}"
    done = process(code, "models", "list", **given)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"\\u6f22" in done.stdout) == (given.get("PYTHONIOENCODING") == "latin-1")
    done = process(code, "models", "list", "--json", **given)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == [{"model": "“é”", "summary": "漢字 😀"}]
    done = process("sys.argv[3] = '\\u201c'", "models", "show", "x", "--wrong", **given)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["models", "list"], ["models", "list", "--json"], ["--help"]])
def test_a_closed_pipe_ends_quietly(words: list[str]) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    done = process("", *words, stdout=writes)
    os.close(writes)
    assert done.stderr == b""


def test_a_full_device_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        done = process("", "models", "list", stdout=full)
    assert done.returncode == 1
    assert done.stderr.decode().startswith("Error: the system refused")
    assert done.stderr.count(b"\n") == 1


def test_the_help_of_installed_packages_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from refusal_nn.cli import _others

    monkeypatch.setattr("refusal_nn.cli.other_nouns", lambda: ["theirs"])
    monkeypatch.setattr(_others, "others", lambda: {"theirs-look": "theirs:look"})
    monkeypatch.setattr(_others, "read_signature", refused)
    for words in (["theirs", "--help"], ["theirs", "look", "--help"], ["theirs", "look"]):
        done = CliRunner().invoke(cli, words)
        assert "title" in done.output
        assert not [character for character in STEERS if character in done.output]


def refused(_: str) -> None:
    raise RequestError(PAYLOAD)
