"""What valid cases are made of: prompts, pairs, the embedded models, complete and partial runs."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.commands import COMPLETE, FAMILIES, PAIRS, PARTIAL, PROMPTS, TEMPLATE, root_of

_LIMITS = ["--kl-max", "1000", "--induce-min", "-1000", "--layer-fraction", "1"]
_PLANTED = ["--model", "planted-gate", "--pairs", PAIRS, "--refusal-tokens", "I"]
_RUNS = (
    ["attribute", *_PLANTED, "--level", "edge", "--split", "train", "--name", "scores"],
    ["circuit", "discover", "scores", "--edges", "6", "--resamples", "3", "--name", "circuit"],
    [
        "direction",
        "extract",
        "--model",
        "tiny-refuser",
        "--prompts",
        PROMPTS,
        "--name",
        "candidates",
    ],
    ["direction", "score", "candidates", "--prompts", PROMPTS, *_LIMITS, "--name", "table"],
    ["direction", "select", "table", *_LIMITS, "--name", "selected"],
)
_BEGUN = {
    "begun": ["attribute", *_PLANTED, "--batch-size", "1", "--name", "begun"],
    "half": [
        *("direction", "extract", "--model", "tiny-refuser", "--prompts", PROMPTS),
        *("--batch-size", "2", "--name", "half"),
    ],
}
"""Commands that are interrupted after their first batch."""


def make(folder: Path) -> None:
    """Fill a folder that the steps of cases copy from.

    Forks, so that what the runs open and start stays out of this process.
    """
    from refusal_nn.models import embedded_path
    from refusal_nn.store import sample_run

    (folder / "stores").mkdir(parents=True)
    rows = [json.dumps(row) for row in _prompts()]
    (folder / PROMPTS).write_text("\n".join(rows) + "\n", encoding="utf-8")
    (folder / PAIRS).write_text("\n".join(map(json.dumps, _pairs())) + "\n", encoding="utf-8")
    (folder / TEMPLATE).write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    (folder / "valid.yaml").write_text("seed: 1\n", encoding="utf-8")
    for name in ("planted-gate", "tiny-refuser"):
        path = embedded_path(name)
        assert path is not None
        shutil.copytree(path, folder / name)
    shutil.copytree(sample_run(), folder / root_of("sample"))
    child = os.fork()
    if not child:
        _make_runs(folder)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    missing = [r for r in (*COMPLETE, *PARTIAL) if not (folder / root_of(r)).is_dir()]
    assert status == 0, "the runs for the cases could not be made"
    assert not missing, missing


def _prompts() -> list[dict[str, Any]]:
    """Three prompts of each style and split of the shipped set."""
    from refusal_nn.prompts import load_prompts

    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in load_prompts("tiny-bench").to_rows():
        found.setdefault((row["split"], row["style"]), []).append(row)
    return [row for rows in found.values() for row in rows[:3]]


def _pairs() -> list[dict[str, Any]]:
    from refusal_nn.testing.words import planted_pairs

    return [
        {
            "clean": clean,
            "corrupted": corrupted,
            "category": "objects",
            "split": ("train", "val", "test")[i % 10 % 3],
            "family": f"object-{i % 10}",
        }
        for i, (clean, corrupted) in enumerate(planted_pairs()[:10])
    ]


def _make_runs(folder: Path) -> None:
    """Run the commands, in a process of their own; never returns."""
    code = 1
    try:
        os.chdir(folder)
        log = os.open("log", os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _save_families(folder)
        for words in _RUNS:
            _run(words, {0})
        for words in _BEGUN.values():
            with _interrupted():
                _run(words, {130})
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _save_families(folder: Path) -> None:
    from refusal_nn.testing import tiny_module, tiny_tokenizer

    for family in FAMILIES:
        saved: Any = tiny_module(family)
        saved.save_pretrained(folder / family)
        tiny_tokenizer().save_pretrained(folder / family)


def _run(words: list[str], codes: set[int]) -> None:
    from refusal_nn.cli import cli

    try:
        cli(args=words, prog_name="refusal-nn")
    except SystemExit as ended:
        if ended.code not in codes:
            raise RuntimeError(f"{words} ended with {ended.code}") from ended


@contextlib.contextmanager
def _interrupted() -> Iterator[None]:
    """Press Ctrl-C when a run tells of its first batch."""
    inputs: Any = importlib.import_module("refusal_nn.cli._inputs")

    def stop(_stage: str, done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    kept = inputs.progress
    inputs.progress = lambda: contextlib.nullcontext(stop)
    try:
        yield
    finally:
        inputs.progress = kept
