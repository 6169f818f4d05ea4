"""The fuzz harness sees what it is there to see, and draws the same cases everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz.cases import KINDS, Case, lay_out, snapshot
from tests.fuzz.drawn import drawn
from tests.fuzz.guard import LEFT
from tests.fuzz.verdict import KEY, Ended, faults
from tests.patience import limit

ROOT = Path(__file__).parents[2]
DONE = Ended(0, False, b"", b"", [], True, "done")
WRONG = replace(DONE, code=2, stderr=b"Error: no such run.\n")
DOCUMENT = b'{"error": {"kind": "request", "message": "no such run.", "fix": null}}'
SHOW, JSON = ("runs", "show", "x"), ("runs", "show", "x", "--json")


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_is_the_same_whenever_it_is_drawn(kind: str) -> None:
    numbers = range(6)
    first = [repr(drawn(kind, 3, n)) for n in numbers]
    __import__("xml.dom.minidom")  # what is loaded changes nothing
    assert [repr(drawn(kind, 3, n)) for n in reversed(numbers)] == first[::-1]
    assert len({*first, *(repr(drawn(kind, 4, n)) for n in numbers)}) > len(first)


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("open('{outside}/new', 'w')", "write"),
        ("open('../../outside/new', 'a')", "write"),
        ("os.remove('{outside}/kept')", "write"),
        ("shutil.rmtree('{outside}')", "write"),
        ("os.symlink('{outside}', 'link'); open('link/new', 'w')", "write"),
        ("os.rename('{outside}/kept', 'mine')", "write"),
        ("urllib.request.urlopen('http://127.0.0.1:9')", "network"),
        ("os.system('true')", "program"),
        ("os.makedirs('{outside}', exist_ok=True)", ""),
        ("open('mine', 'w'); os.mkdir('folder'); shutil.rmtree('folder')", ""),
    ],
)
def test_the_guard_sees_what_reaches_outside(tmp_path: Path, code: str, seen: str) -> None:
    folder, outside, record = tmp_path / "case", tmp_path / "outside", tmp_path / "case" / "seen"
    (folder / "work").mkdir(parents=True)
    outside.mkdir()
    (outside / "kept").touch()
    program = (
        "import os, shutil, urllib.request\n"
        "from tests.fuzz.guard import install\n"
        f"os.chdir({str(folder / 'work')!r})\n"
        f"install({str(folder)!r}, {str(record)!r})\n" + code.format(outside=outside)
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=limit(30),
        check=False,
    )
    noted = [json.loads(line)[0] for line in record.read_text().splitlines()] if seen else []
    assert noted[:1] == ([seen] if seen else [])
    assert (done.returncode == LEFT) == (seen == "write"), done.stderr
    assert list(outside.iterdir()) == [outside / "kept"]


@pytest.mark.parametrize(
    ("argv", "ended", "word"),
    [
        (
            SHOW,
            replace(DONE, code=1, stderr=b"Traceback (most recent call last):\n  x\nE: y\n"),
            "traceback",
        ),
        (SHOW, replace(DONE, code=1), "0 error sentences"),
        (SHOW, replace(WRONG, stderr=b"Error: a.\nError: b.\n"), "2 error sentences"),
        (SHOW, replace(WRONG, stderr=b"Error: a.\nand more\n"), "more after"),
        (SHOW, replace(WRONG, stderr=b"Error: a\x1b[2J.\n"), "control character"),
        (SHOW, replace(WRONG, stderr=b"Error: this is a bug in refusal_nn.\n"), "bug"),
        (SHOW, replace(DONE, stdout=KEY.encode()), "the key"),
        (SHOW, replace(DONE, code=3), "exit code 3"),
        (SHOW, replace(DONE, code=-9), "signal 9"),
        (SHOW, replace(DONE, code=-24), "burning"),
        (SHOW, replace(DONE, code=-9, blocked=True), "blocked"),
        (SHOW, replace(DONE, notes=[("network", "x")]), "network"),
        (SHOW, replace(DONE, notes=[("write", "open /elsewhere/x")]), "write: open /elsewhere/x"),
        (SHOW, replace(DONE, before={"home": {}}, after={"home": {".x": "1"}}), "made home/.x"),
        (SHOW, replace(DONE, before={"work": {"a": "1"}}, after={"work": {}}), "removed work/a"),
        (
            SHOW,
            replace(WRONG, before={"work": {}}, after={"work": {"stores/x.zarr.partial/a": "1"}}),
            "left stores/x.zarr",
        ),
        (("runs", "list"), WRONG, "one bad run"),
        (SHOW, replace(WRONG, stderr=b"Error: " + b"x" * 2000), "2007 characters"),
        (JSON, WRONG, "not one JSON document"),
        (JSON, replace(DONE, stdout=b"{}{}"), "not one JSON document"),
        (JSON, replace(DONE, stdout=b"[NaN]"), "not one JSON document"),
        (JSON, replace(WRONG, stdout=DOCUMENT.replace(b"fix", b"hint")), "wrong keys"),
        (JSON, replace(WRONG, stdout=DOCUMENT.replace(b"request", b"bug")), "bug"),
    ],
)
def test_what_is_not_allowed_is_told(argv: tuple[str, ...], ended: Ended, word: str) -> None:
    assert any(word in fault for fault in faults(argv, "", ended)), faults(argv, "", ended)


@pytest.mark.parametrize(
    ("argv", "ended"),
    [
        (SHOW, replace(DONE, stdout=b"a table\n")),
        (SHOW, WRONG),
        (JSON, replace(DONE, stdout=b"{}")),
        (JSON, replace(WRONG, stdout=DOCUMENT)),
        (
            ("runs", "resume", "x"),
            replace(
                WRONG,
                before={"work": {"stores/x.zarr.partial/a": "1"}},
                after={"work": {"stores/x.zarr.partial/a": "2", "stores/x.zarr.partial/b": "1"}},
            ),
        ),
        (("runs", "verify"), replace(DONE, code=1, stdout=b"x: changed\n")),
        (SHOW, replace(DONE, before={"work": {}}, after={"work": {"stores/x": "1"}})),
        ((*SHOW, "--stores", "/d"), replace(DONE, code=97, notes=[("write", "os.mkdir /d/x")])),
        (
            (*SHOW, "--stores", "a"),
            replace(DONE, before={"work": {}}, after={"work": {"a/x": "1"}}),
        ),
    ],
)
def test_what_is_allowed_is_not(argv: tuple[str, ...], ended: Ended) -> None:
    assert faults(argv, "", ended) == []


def test_steps_change_what_they_name_and_nothing_else(tmp_path: Path) -> None:
    material, work = tmp_path / "material", tmp_path / "work"
    material.mkdir()
    work.mkdir()
    (material / "a.json").write_text('{"x": {"y": 1}, "z": [2]}')
    steps = (
        ("copy", "a.json", "a.json"),
        ("copy", "a.json", "b.json"),
        ("put", "a.json", 0, ("x", "y"), None),
        ("bytes", "b.json", 0, "cut", 0.5, b""),
        ("instead", "none*", 0, "gone"),
        ("make", "pipe", "pipe"),
        ("deep", "c.json", 3, "[", "]"),
    )
    lay_out(Case("stores", (), steps), work, material)
    assert (work / "a.json").read_text() == '{"x": {"y": null}, "z": [2]}'
    assert (work / "b.json").read_text() == '{"x": {"y": '
    assert (work / "c.json").read_text() == "[[[]]]"
    assert sorted(snapshot(work)) == ["a.json", "b.json", "c.json", "pipe"]
