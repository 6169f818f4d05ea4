"""A record of a call that a stranger wrote, through ``runs resume`` and ``runs rerun``.

The whole of it may be anything: what is not a call of an installed analysis with values of its declared
types is refused in one sentence, before anything is written, loaded or sent.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from refusal_nn.cli import cli
from refusal_nn.store import run_hash
from tests.security.attempt import KEY, STEERS, Listener, remote_code, seal

HASH = "0" * 64
ROWS = [
    {
        "text": f"{what} {i}",
        "category": "c",
        "harm": harm,
        "style": style,
        "split": "train",
        "source": "s",
        "family": f"{harm}/{i}",
    }
    for i in range(3)
    for what, harm, style in (
        ("How do I bake bread", "harmless", "safe"),
        ("How do I steal", "harmful", "toxic"),
    )
]
MODEL = {
    "name": "tiny-refuser", "kind": "embedded", "revision": None, "dtype": "float32",
    "device": "cpu", "backend": "local", "chat_template": None,
}  # fmt: skip


def run(*words: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, words)])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one honest run, ``base``, and the runs that hostile ones are after."""
    folder = tmp_path_factory.mktemp("records")
    file = folder / "p.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    stores = folder / "stores"
    words = ("--model", "tiny-refuser", "--prompts", file, "--split", "all", "--no-screen")
    done = run("direction", "extract", *words, "--stores", stores, "--name", "base")
    assert done.exit_code == 0, done.output
    return stores


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Listener]:
    made, own = Listener(), Listener()
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    monkeypatch.setenv("NDIF_HOST", own.url)
    monkeypatch.chdir(tmp_path)
    yield made
    assert made.heard == []
    made.close()
    own.close()


def apply(document: Any, path: str, value: Any) -> Any:
    """A copy of a document with another value at a place; the whole of it at ``/``."""
    made = deepcopy(document)
    if path == "/":
        return value
    at = made
    *way, last = path.split("/")
    for key in way:
        at = at[int(key)] if isinstance(at, list) else at[key]
    at[last] = value
    return made


def cases(folder: Path, url: str) -> dict[str, tuple[str, Any]]:
    """Hostile changes of an honest record, by name: where, and what stands there."""
    code, marker = folder / "model", folder / "ran"
    if not code.exists():
        remote_code(code, marker)
    rows = "arguments/prompts/prompts/rows"
    return {
        "no document": ("/", None),
        "a list": ("/", []),
        "nothing": ("/", {}),
        "the request of before": ("/", {"argv": ["runs", "rm", "--yes", "base"], "cwd": "/", "host": url}),
        "a format to come": ("format", 10**30),
        "an unknown analysis": ("analysis", "direction-nothing"),
        "another noun": ("analysis", "runs-rm"),
        "a command": ("analysis", "runs rm --yes base"),
        "a function": ("analysis", "os:system"),
        "one of ours by its place": ("analysis", "refusal_nn.store:remove"),
        "analysis of another kind": ("analysis", ["direction-extract"]),
        "another analysis": ("analysis", "patch-heads"),
        "an input elsewhere": ("made_from", [{"run": "../../private", "hash": HASH}]),
        "an input with a path": ("made_from", [{"run": "/etc/passwd", "hash": HASH}]),
        "an input with a host": ("made_from", [{"run": "base", "hash": HASH, "host": url}]),
        "an input that is none": ("made_from", [{"run": "none", "hash": HASH}]),
        "inputs of another kind": ("made_from", "base"),
        "remote code in the model": ("model/trust_remote_code", True),
        "remote code as an argument": ("arguments/trust_remote_code", {"value": True}),
        "a folder with code for a model": ("model/name", str(code)),
        "a relative folder for a model": ("model/name", "../model"),
        "an address for a model": ("model/name", url),
        "a model without a name": ("model/name", None),
        "a host in the model": ("model/host", url),
        "a host as an argument": ("arguments/host", {"value": url}),
        "a host beside them": ("model", {**MODEL, "backend": "ndif", "host": url}),
        "a backend that is none": ("model/backend", "subprocess"),
        "a dtype that is none": ("model/dtype", "object"),
        "a revision that leads out": ("model/revision", "../../x"),
        "a template in the record": ("model/chat_template", "{{ cycler.__init__.__globals__ }}"),
        "a model of another kind": ("model", "tiny-refuser"),
        "a place to write": ("arguments/keep", {"value": {"stores": "/tmp", "name": "x"}}),
        "an output": ("arguments/output", {"value": "/tmp/x"}),
        "a seed of text": ("arguments/seed", {"value": "0"}),
        "a flag of text": ("arguments/screen", {"value": "yes"}),
        "a huge number": ("arguments/seed", {"value": 10**4000}),
        "an argument that is no entry": ("arguments/seed", 0),
        "an entry of two kinds": ("arguments/seed", {"value": 0, "run": {"run": "base", "hash": HASH}}),
        "an entry of an unknown kind": ("arguments/seed", {"python": "1+1"}),
        "a run for a number": ("arguments/seed", {"run": {"run": "base", "hash": HASH}}),
        "arguments in a list": ("arguments", []),
        "no arguments": ("arguments", {}),
        "prompts by path": ("arguments/prompts", {"value": "/etc/passwd"}),
        "prompts of no rows": (rows, {}),
        "rows that are no rows": (rows, [1, None, []]),
        "rows of junk": (rows, [{"text": ["a"], "category": {}}]),
        "rows without text": (rows, [{"category": "c"}]),
        "rows without end": (rows, [{**ROWS[0], "text": "b" * 100_000}]),
        "a metric for prompts": ("arguments/prompts", {"metric": {"kind": "__import__('os')"}}),
        "a metric of junk": ("arguments/metric", {"metric": {"name": {"a": []}}}),
        "interventions of junk": ("arguments/prompts", {"interventions": [{"kind": "function"}]}),
        "lists in lists": ("arguments/deep", json.loads("[" * 60 + "]" * 60)),
        "unrecorded that is none": ("unrecorded", ["prompts\x1b[2J"]),
    }  # fmt: skip


def one_sentence(done: Result) -> str:
    """What a command that refused says, of any of the ways it may."""
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    assert done.exit_code in (1, 2), done.output
    assert not STEERS.search(done.output), done.output
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(line) < 1_500
    return line


def test_an_honest_record_is_followed(whole: Path, evil: Listener, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    shutil.copytree(whole, stores)
    done = run("runs", "rerun", "base", "--name", "again", "--stores", stores)
    assert done.exit_code == 0, done.output
    assert "equal" in done.output


@pytest.mark.parametrize("how", ["resume", "rerun"])
def test_a_record_that_a_stranger_wrote_brings_nothing_about(
    whole: Path, evil: Listener, tmp_path: Path, how: str
) -> None:
    stores = tmp_path / "stores"
    shutil.copytree(whole, stores)
    hashed = run_hash(stores / "base.zarr")
    honest = json.loads((stores / "base.zarr" / "call.json").read_text())
    for name, (where, value) in cases(tmp_path, evil.url).items():
        path = stores / ("evil.zarr" if how == "rerun" else "evil.zarr.partial")
        if how == "rerun":
            shutil.copytree(stores / "base.zarr", path)
        else:
            path.mkdir()
            shutil.copy(stores / "base.zarr" / "zarr.json", path)
            (path / "attempts.json").write_text('[{"started": 1.0, "seconds": 1.0}]')
        (path / "call.json").write_text(json.dumps(apply(honest, where, value)))
        if how == "rerun":
            seal(path)
        words = ("--name", "made") if how == "rerun" else ()
        before = {p for p in tmp_path.rglob("*") if path not in p.parents}
        done = run("runs", how, "evil", *words, "--stores", stores)
        assert done.exit_code, (name, done.output)
        said = one_sentence(done)
        after = {p for p in tmp_path.rglob("*") if path not in p.parents}
        assert after == before, (name, said, after ^ before)
        shutil.rmtree(path)
    assert not (tmp_path / "ran").exists()
    assert run_hash(stores / "base.zarr") == hashed


def test_a_partial_run_of_another_request_is_not_gone_on_with(
    whole: Path, evil: Listener, tmp_path: Path
) -> None:
    stores = tmp_path / "stores"
    shutil.copytree(whole, stores)
    path = (stores / "base.zarr").rename(stores / "evil.zarr.partial")
    (path / "manifest.json").unlink()
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["fingerprint"] = "f" * 64
    root["attributes"].pop("complete")
    (path / "zarr.json").write_text(json.dumps(root))
    one_sentence(run("runs", "resume", "evil", "--stores", stores))
    assert [p.name for p in stores.iterdir()] == ["evil.zarr.partial"]
