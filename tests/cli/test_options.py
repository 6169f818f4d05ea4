"""Shared options: a config file's values, their checks, and what wins."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from refusal_nn.cli import Root
from refusal_nn.cli._options import (
    batch_size_option,
    config_option,
    json_option,
    loading_options,
    model_option,
    output_option,
    run_options,
    seed_option,
    take_loading,
)
from refusal_nn.cli._output import show

LOADING = {p.name for p in click.command()(loading_options(lambda: None)).params} - {"deadline"}
"""Keywords of load_model; ``deadline`` becomes one."""


@click.group(cls=Root)
def program() -> None:
    """A program with one command, so that errors go through the root."""


@click.command()
@model_option(required=True)
@loading_options
@click.option("--prompts", default="tiny-bench")
@batch_size_option
@seed_option
@run_options
@config_option
@json_option
@output_option()
@click.option("--category", multiple=True)
def probe(**values: Any) -> None:
    """Print what a command receives."""
    print("a library's chatter")
    loading = take_loading(values)
    show({"loading": loading, **values})


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Root, "get_command", lambda self, ctx, name: probe)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(program, ["probe", *arguments])


def config(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_values_come_from_the_file_and_what_is_typed_wins(tmp_path: Path) -> None:
    file = config(tmp_path, "model: tiny-refuser\nbatch-size: 8\nseed: 3\nname: no\n")
    typed = ["--seed", "5", "--json"]
    for arguments in (["--config", file, *typed], [*typed, "--config", file]):
        done = run(*arguments)
        assert done.exit_code == 0, done.stderr
        got = json.loads(done.stdout)
        assert (got["model"], got["batch_size"], got["seed"]) == ("tiny-refuser", 8, 5)
        assert got["prompts"] == "tiny-bench"
        assert got["name"] == "no"  # not YAML's false


def test_underscores_flags_and_lists_are_read(tmp_path: Path) -> None:
    file = config(
        tmp_path, "model: m\nbatch_size: 4\nresume: true\njson: true\ncategory: [hate, privacy]\n"
    )
    done = run("--config", file)
    assert done.exit_code == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["resume"] is True
    assert got["batch_size"] == 4
    assert got["category"] == ["hate", "privacy"]


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    done = run("--config", config(tmp_path, "\n# nothing\n"), "--model", "m", "--json")
    assert json.loads(done.stdout)["batch_size"] is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: m\n", "unknown option 'modle'; did you mean 'model'?"),
        ("model: m\nbatchsize: 3\n", "unknown option 'batchsize'; did you mean 'batch-size'?"),
        ("config: other.yaml\nmodel: m\n", "unknown option 'config'"),
        ("- model\n", "holds a list; write one `option: value` a line."),
        ("model: [a, b]\n", "option 'model' takes one value."),
        ("model: {name: a}\n", "option 'model' takes one value."),
        ("model:\n", "option 'model' takes one value."),
        ("category: {a: b}\n", "option 'category' takes one value or a list of values."),
        ("model: 'm\n", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_message_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    done = run("--config", config(tmp_path, text))
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: config file 'settings.yaml'")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("model: m\nseed: 1.5\n", "--seed"),
        ("model: m\nbatch-size: 0\n", "--batch-size"),
        ("model: m\ndtype: float8\n", "--dtype"),
        ("model: m\nresume: perhaps\n", "--resume"),
    ],
)
def test_a_value_from_the_file_is_checked_as_if_typed(
    tmp_path: Path, text: str, option: str
) -> None:
    done = run("--config", config(tmp_path, text))
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.stderr


def test_a_missing_file_exits_2(tmp_path: Path) -> None:
    done = run("--config", str(tmp_path / "none.yaml"), "--model", "m")
    assert done.exit_code == 2
    assert "does not exist" in done.stderr


def test_the_model_is_required_unless_the_file_names_it(tmp_path: Path) -> None:
    assert run().exit_code == 2
    assert "Missing option '--model'" in run().stderr
    assert run("--config", config(tmp_path, "model: m\n")).exit_code == 0


def test_json_leaves_nothing_else_on_stdout() -> None:
    done = run("--model", "m", "--json")
    assert json.loads(done.stdout)["model"] == "m"
    assert "a library's chatter" in done.stderr
    assert "a library's chatter" in run("--model", "m").stdout


def test_loading_options_are_the_keywords_of_load_model() -> None:
    import inspect

    from refusal_nn import models
    from refusal_nn.cli._options import BACKENDS, DTYPES

    keywords = {*inspect.signature(models.load_model).parameters, *models.Options.__annotations__}
    assert set(LOADING) <= keywords
    assert set(DTYPES) == set(models.DTYPES)
    assert tuple(models.BACKENDS) == BACKENDS


BOMB = "a: &a [x, x]\n" + "\n".join(f"b{i}: &b{i} [*a, *a]" for i in range(50))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model: " + b"[" * 5000 + b"]" * 5000, "is nested too deeply"),
        (b"[" * 5000, "is nested too deeply"),
        (b"{a: " * 5000, "is nested too deeply"),
        (b"- " * 5000 + b"x", "is nested too deeply"),
        (BOMB.encode(), "has an anchor, an alias or a tag"),
        (b"model: &m [*m]", "has an anchor, an alias or a tag"),
        (b"model: !!python/object/apply:os.getcwd []", "has an anchor, an alias or a tag"),
        (b"model: !x m", "has an anchor, an alias or a tag"),
        (b"model: a\nmodel: b", "has option 'model' twice"),
        (b"batch-size: 1\nbatch_size: 2", "has option 'batch-size' twice"),
        (b"? [a, b]\n: c", "has a key that is no word"),
        (b"? {a: b}\n: c", "has a key that is no word"),
        (b"model: \0", "is not valid YAML"),
        (b'model: "a\\0"', "the value of option 'model' holds a NUL byte"),
        (b'category: [a, "\\ud800"]', "the value of option 'category' is not UTF-8"),
        (b"model: \xff", "is not UTF-8"),
        (b"a: b\n---\na: c", "is not valid YAML"),
        (b"%YAML 9.9\n---\na: c", "is not valid YAML"),
        (b"model: " + b"x" * (2 << 20), "is larger than 1 MiB"),
        (b"x" * 1000 + b": 1", "unknown option"),
        (b"just words", "holds a text"),
        (b"trust-remote-code: true", "asks for 'trust-remote-code', which no file may decide"),
        (b"trust_remote_code: false", "asks for 'trust-remote-code', which no file may decide"),
    ],
)
def test_a_hostile_file_is_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content)
    done = run("--model", "m", "--config", str(path))
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.startswith("Error: config file")
    assert done.stderr.count("\n") == 1
    assert len(done.stderr) < 5000


def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    for path in ("pipe.yaml", "loop.yaml", "zero.yaml", ".", "x" * 5000, "a/" * 3000):
        done = run("--model", "m", "--config", str(tmp_path / path))
        assert done.exit_code == 2
        assert "Error: " in done.stderr
        assert "Traceback" not in done.stderr


def test_no_environment_variable_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("REFUSAL_NN", "REFUSAL_NN_PROBE", "PROBE", "PROGRAM_PROBE", "PROGRAM"):
        monkeypatch.setenv(f"{prefix}_TRUST_REMOTE_CODE", "1")
        monkeypatch.setenv(f"{prefix}_SEED", "7")
    got = json.loads(run("--model", "m", "--json").stdout)
    assert (got["loading"]["trust_remote_code"], got["seed"]) == (False, 0)


def test_a_file_replaces_no_file_that_is_there(tmp_path: Path) -> None:
    output = tmp_path / "precious"
    file = config(tmp_path, f"model: m\noutput: {output}\n")
    assert run("--config", file).exit_code == 0
    output.write_text("precious", encoding="utf-8")
    done = run("--config", file)
    assert done.exit_code == 2
    assert "a config file may not replace a file; type the option." in done.stderr
    assert run("--config", file, "--output", str(output)).exit_code == 0
