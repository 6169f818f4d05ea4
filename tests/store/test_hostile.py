"""A folder of hostile runs among good ones: the good ones work, each hostile one is one sentence."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from refusal_nn.cli import cli
from refusal_nn.errors import RefusalNNError, StoreError
from refusal_nn.runs import open_run
from refusal_nn.store import RunRecorder, open_runs
from tests.patience import within
from tests.store import hostile, hostile_runs
from tests.store.synthetic import FINGERPRINT, provenance

N, GOOD = 200, 20

SHOWN = (
    # what `runs show` reads of a run is in order; `runs verify` and going on with it are another thing
    "a_byte_is_flipped",
    "the_manifest_is_damaged",
    "attempts_are_none",
    "the_stage_has_another_shape",
)


@dataclass(frozen=True)
class Tree:
    """The folder, what is outside of it, the names of its good runs and its hostile runs."""

    stores: Path
    outside: Path
    good: list[str]
    bad: list[hostile_runs.Hostile]

    def run(self, *argv: str) -> Result:
        """A command, which ends as every one may."""
        with within(30):
            result = CliRunner().invoke(cli, [*argv, "--stores", str(self.stores)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        assert result.exit_code in (0, 1, 2), (argv, result.output)
        assert "Traceback" not in result.output
        return result


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    folder = tmp_path_factory.mktemp("hostile")
    stores, outside = folder / "stores", folder / "outside"
    bad = hostile_runs.make(stores, outside, n=N, good=GOOD, seed=9)
    return Tree(stores, outside, [f"good-{i:02d}" for i in range(GOOD)], bad)


def contents(folder: Path) -> dict[str, str]:
    """Everything in a folder, nothing followed."""
    found = {}
    for top, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(top, name)
            if path.is_symlink():
                found[str(path)] = os.readlink(path)  # noqa: PTH115
            elif stat.S_ISREG(path.lstat().st_mode):
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
            else:
                found[str(path)] = oct(path.lstat().st_mode)
    return found


def one_sentence(result: Result) -> str:
    """What a command that failed says."""
    assert result.exit_code in (1, 2), result.output
    lines = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.output
    assert len(lines[0]) < 1200
    return lines[0]


def test_there_are_enough_kinds_and_runs(tree: Tree) -> None:
    assert len(hostile.COMPLETE) >= 30
    assert len(hostile.PARTIAL) >= 10
    assert len(tree.bad) == N
    assert {run.kind for run in tree.bad} == {*hostile.COMPLETE, *hostile.PARTIAL}


def test_the_good_ones_are_found_and_opened(tree: Tree) -> None:
    runs = open_runs(tree.stores)
    assert [r.name for r in runs if r.name.startswith("good-")] == tree.good
    chosen = runs.select(name=lambda name: name.startswith("good-"), model="tiny-refuser")
    assert chosen.names == tree.good
    assert all(run.tree.load()["rates"].sizes["intervention"] for run in chosen)
    assert runs.select(state={"complete"}, analysis={"direction-evaluate"}).names
    assert chosen.to_dataset("rates").sizes["run"] == GOOD
    assert len(runs.to_frame()) == len(runs)
    assert len(repr(runs)) < 1000 * len(runs)
    with pytest.raises(StoreError, match=r"run 'bad-.*' (cannot be used|is partial)"):
        runs.to_dataset()


def test_the_list_has_one_line_for_each_and_the_reasons(tree: Tree) -> None:
    result = tree.run("runs", "list")
    assert result.exit_code == 0
    for name in tree.good:
        assert name in result.output
    damaged = {r.name: r.reason for r in open_runs(tree.stores) if r.state == "damaged"}
    assert len(damaged) >= 20
    for name in damaged:
        assert (
            sum(line.startswith(f"{name} is damaged: ") for line in result.output.splitlines()) == 1
        )
    assert tree.run("runs", "list", "--json").exit_code == 0


def test_commands_on_the_good_ones_work(tree: Tree, tmp_path: Path) -> None:
    verified = tree.run("runs", "verify", *tree.good)
    assert (verified.exit_code, verified.output.count(": ok")) == (0, GOOD)
    for name in tree.good:
        assert "refusal_score" in tree.run("runs", "show", name).output
    page = tmp_path / "page.html"
    assert tree.run("report", tree.good[0], "--output", str(page)).exit_code == 0
    assert page.is_file()


def test_verifying_all_names_every_hostile_one(tree: Tree) -> None:
    listed = open_runs(tree.stores).names
    result = tree.run("runs", "verify")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    for name in listed:
        (line,) = [line for line in lines if line.startswith(f"{name}: ")]
        assert line.endswith(": ok") is name.startswith("good-"), line


def test_every_hostile_one_is_one_sentence(tree: Tree, tmp_path: Path) -> None:
    before = contents(tree.outside), contents(tree.stores)
    for run in tree.bad:
        for argv in (
            ("runs", "show", run.name),
            ("report", run.name, "--output", str(tmp_path / "page.html")),
            ("runs", "export", run.name, str(tmp_path / "out.csv")),
            ("runs", "rerun", run.name, "--name", "again"),
        ):
            result = tree.run(*argv)
            if argv[1] == "show" and run.kind in SHOWN:
                continue
            said = one_sentence(result)
            assert run.name in said, (run.kind, argv, said)
        assert tree.run("runs", "verify", run.name).exit_code in (1, 2)
        with pytest.raises(RefusalNNError, match="run"):
            open_run(tree.stores, run.name)
    assert not list(tmp_path.iterdir())
    assert (contents(tree.outside), contents(tree.stores)) == before


def test_no_hostile_partial_run_goes_on(tree: Tree) -> None:
    before = contents(tree.outside), contents(tree.stores)
    for run in tree.bad:
        if not run.partial:
            continue
        with (
            pytest.raises(StoreError, match=f"run {run.name!r}"),
            RunRecorder(
                tree.stores / run.name,
                fingerprint=FINGERPRINT,
                provenance=provenance(),
                request={},
            ) as recorder,
        ):
            hostile.stage(recorder)
        assert tree.run("runs", "resume", run.name).exit_code in (1, 2), run.kind
    assert contents(tree.outside) == before[0]


def test_removing_them_removes_nothing_else(tree: Tree, tmp_path: Path) -> None:
    stores = tmp_path / "stores"
    shutil.copytree(tree.stores, stores, symlinks=True, ignore=_no_pipes)
    other = Tree(stores, tree.outside, tree.good, tree.bad)
    before = contents(tree.outside)
    good = {n: contents(stores / f"{n}.zarr") for n in tree.good}
    for run in tree.bad:
        other.run("runs", "rm", "--yes", run.name)
    assert contents(tree.outside) == before
    assert {n: contents(stores / f"{n}.zarr") for n in tree.good} == good


def _no_pipes(folder: str, names: Sequence[str]) -> list[str]:
    modes = {name: os.lstat(Path(folder, name)).st_mode for name in names}
    return [n for n, mode in modes.items() if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)]
