"""How commands end: one sentence, one document, one exit code, whatever was raised."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from refusal_nn import errors
from refusal_nn.cli import cli
from refusal_nn.cli._ending import KINDS, ending_of

BUG = "this is a bug"


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException, *typed: str) -> Result:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("refusal_nn.models.load_model", fail)
    return CliRunner().invoke(cli, ["models", "show", "tiny-refuser", *typed])


def strict(text: str) -> Any:
    def forbid(name: str) -> None:
        raise AssertionError(name)

    return json.loads(text, parse_constant=forbid)


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errors.RequestError("no."), "request", 2),
        (errors.StoreError("no."), "store", 2),
        (errors.PromptError("no."), "prompt", 2),
        (errors.ModelError("no."), "model", 2),
        (errors.InterventionError("no."), "intervention", 2),
        (errors.PreflightError("no."), "preflight", 2),
        (errors.WorkError("no."), "work", 1),
        (errors.BackendError("no."), "backend", 1),
        (errors.UnavailableError("no."), "unavailable", 1),
        (errors.VerificationError("no."), "verification", 1),
        (click.UsageError("no."), "usage", 2),
        (click.BadParameter("no."), "usage", 2),
        (click.Abort(), "aborted", 1),
        (MemoryError(), "memory", 1),
        (OutOfMemoryError("CUDA out of memory."), "memory", 1),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried"), "memory", 1),
        (RecursionError(), "nesting", 2),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "system", 1),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/x"), "system", 1),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"), "file", 2),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x" * 9999), "file", 2),
        (OSError("text alone"), "bug", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (ZeroDivisionError("x"), "bug", 1),
        (RuntimeError("x"), "bug", 1),
        (EOFError(), "bug", 1),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), "bug", 1),
        (ExceptionGroup("several", [ValueError("x")]), "bug", 1),
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_any_exception_is_a_sentence_and_a_document_if_asked(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: str, code: int, as_json: bool
) -> None:
    done = raising(monkeypatch, error, *["--json"] * as_json)
    assert done.exit_code == code
    said = done.stderr.strip("\n").splitlines()[-1]
    assert said.startswith("Error: ")
    assert len(said) < 5000
    assert "Traceback" not in done.stderr
    assert (BUG in done.stderr) == (kind == "bug")
    if as_json:
        told = strict(done.stdout)
        assert list(told) == ["error"]
        assert list(told["error"]) == ["kind", "message", "fix"]
        assert told["error"]["kind"] == kind
        assert kind in KINDS
        assert said == f"Error: {told['error']['message']}"
    else:
        assert done.stdout == ""


def test_a_sentence_is_cut_as_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    done = raising(monkeypatch, errors.RequestError("\U000e143a" * 2000))
    assert len(done.stderr.splitlines()[-1]) <= 1600


def test_every_class_of_error_has_a_documented_kind() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.RefusalNNError)
    ]
    assert {each.kind for each in classes} <= set(KINDS)


def test_kinds_are_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/cli.md").read_text(encoding="utf-8")
    for kind, meaning in KINDS.items():
        assert f"| `{kind}` | {meaning} |" in page


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (errors.StoreError("no run 'a' in 'b'; check the name."), "check the name."),
        (errors.ModelError("no model 'it; has; these'."), None),
        (errors.ModelError("no model 'it; has'; pass --model 'a; b'."), "pass --model 'a; b'."),
        (
            errors.PromptError("the file's rows are 3; the set's are 4; use the 'same'."),
            "use the 'same'.",
        ),
        (errors.RequestError("wrong."), None),
        (errors.WorkError('it failed: "a; b"; do `c; d` now.'), "do `c; d` now."),
        (MemoryError(), "try a smaller --batch-size or another --dtype."),
        (click.UsageError("a and b; give both or neither."), "give both or neither."),
        (errors.RequestError("x '" * 2000 + "; do it."), "do it."),
    ],
)
def test_the_fix_is_the_last_part_of_the_sentence(error: Exception, fix: str | None) -> None:
    assert ending_of(error).fix == fix


@pytest.mark.parametrize(
    "words",
    [
        ["modles", "--json"],
        ["--json", "models", "list"],
        ["models", "lst", "--json"],
        ["models", "list", "--json", "--jsn"],
        ["models", "list", "--jsn", "--json"],
        ["models", "list", "--json", "extra"],
        ["models", "show", "--json"],
        ["--log-level", "loud", "models", "list", "--json"],
        ["direction", "extract", "--json"],
        ["direction", "extract", "--json", "--model"],
        ["direction", "extract", "--model", "m", "--prompts", "p", "--dtype", "x", "--json"],
        ["direction", "extract", "--json", "--seed", "-1", "--model", "m", "--prompts", "p"],
        ["direction", "extract", "--config", "none.yaml", "--json"],
        ["direction", "extract", "--config", "bad.yaml", "--json"],
        ["direction", "extract", "--config", "json.yaml", "--wrong"],
        ["direction", "extract", "--wrong", "--config=json.yaml"],
        ["direction", "extract", "--config", "json.yaml", "--seed", "x"],
        ["models", "show", "\0", "--json"],
        ["models", "show", "", "--json"],
        ["models", "show", "--revision=", "m", "--json"],
        ["models", "show", "\udcff", "--json"],
        ["runs", "show", "none", "--json"],
        ["runs", "verify", "none", "--json"],
        ["runs", "rm", "none", "--json"],
        ["circuit", "discover", "r", "--json", "--split", "val"],
    ],
)
def test_json_with_an_error_is_one_document_wherever_it_stands(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("json.yaml").write_text("json: true\n", encoding="utf-8")
    Path("bad.yaml").write_text("modle: m\n", encoding="utf-8")
    done = CliRunner().invoke(cli, words)
    error = strict(done.stdout)["error"]
    assert error["kind"] in KINDS
    assert error["kind"] != "bug"
    assert error["message"]
    assert done.exit_code == (1 if error["kind"] == "aborted" else 2)
    assert f"Error: {error['message']}" in done.stderr.replace("\\udcff", "\udcff")


@pytest.mark.parametrize(
    "words",
    [
        ["report", "r", "--title", "--json", "--wrong"],
        ["models", "show", "--wrong", "--", "--json"],
        ["direction", "extract", "--config", "plain.yaml", "--wrong"],
    ],
)
def test_what_only_looks_like_json_asks_for_none(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text("json: false\n", encoding="utf-8")
    done = CliRunner().invoke(cli, words)
    assert (done.exit_code, done.stdout) == (2, "")


def test_a_document_that_was_printed_stays_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise errors.WorkError("it broke after the document.")

    monkeypatch.setattr("refusal_nn.cli.models.Table", lambda *_: None)
    from refusal_nn.cli import models as module

    shown = module.show

    def then_fail(*parts: Any, **more: Any) -> None:
        shown(*parts, **more)
        fail()

    monkeypatch.setattr("refusal_nn.cli.models.show", then_fail)
    done = CliRunner().invoke(cli, ["models", "list", "--json"])
    assert done.exit_code == 1
    assert isinstance(strict(done.stdout), list)
    assert "Error: it broke after the document." in done.stderr
