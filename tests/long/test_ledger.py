"""Long tests run in full, are sampled, shared out and taken up again, and leave their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.long import ledger
from tests.patience import limit

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_ordinary(): pass

@pytest.mark.long
def test_long(): pass

@pytest.mark.long(n=20, sample=3, seed=5)
def test_both(extent): print("did", extent.n, extent.seed, extent.full)

@pytest.mark.long
def test_wrong(): assert False
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a few tests."""
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers = long\naddopts = -p no:cacheprovider\n"
    )
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    git(tmp_path, "init", "-q")
    save(tmp_path)
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def save(folder: Path) -> None:
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "as it is")


def pytest_in(folder: Path, *words: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-s", "-p", "tests.long.tier", *words],
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit(60),
        check=False,
    )
    return done.stdout + done.stderr


def results(folder: Path) -> dict[str, Any]:
    return {k.partition("::")[2]: v for k, v in ledger.read(folder / "r.json").items()}


def test_an_ordinary_run_takes_samples_and_leaves_out_what_is_only_long(folder: Path) -> None:
    said = pytest_in(folder)
    assert "2 passed, 2 deselected" in said
    assert "did 3 5 False" in said


def test_a_full_run_takes_everything(folder: Path) -> None:
    said = pytest_in(folder, "--full")
    assert "1 failed, 3 passed" in said
    assert "did 20 5 True" in said


def test_a_recorded_run_keeps_what_each_long_test_came_to(folder: Path) -> None:
    pytest_in(folder, "--record", "r.json")
    found = results(folder)
    assert found.keys() == {"test_long", "test_both", "test_wrong"}
    assert (found["test_both"]["n"], found["test_both"]["seed"]) == (20, 5)
    assert (found["test_long"]["outcome"], found["test_wrong"]["outcome"]) == ("passed", "failed")
    assert {entry["commit"] for entry in found.values()} == {ledger.commit(folder / "r.json")}


def test_what_is_on_record_for_a_commit_is_not_run_again_unless_asked(folder: Path) -> None:
    pytest_in(folder, "--record", "r.json")
    save(folder)  # the results themselves make no difference
    assert "4 deselected" in pytest_in(folder, "--record", "r.json")
    assert "1 failed, 2 passed" in pytest_in(folder, "--record", "r.json", "--again")
    (folder / "test_it.py").write_text(TESTS + "\n")
    assert "commit first" in pytest_in(folder, "--record", "r.json")
    save(folder)
    assert "1 failed, 2 passed" in pytest_in(folder, "--record", "r.json")


def test_shards_share_the_long_tests_out_and_their_results_meet(folder: Path) -> None:
    assert "1 passed" in pytest_in(folder, "--record", "r.json", "--shard", "1/3")
    assert len(results(folder)) == 1
    for part in (2, 3):
        pytest_in(folder, "--record", "r.json", "--shard", f"{part}/3")
    assert len(results(folder)) == 3


def test_entries_written_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    entry = ledger.Entry(commit="c", n=1, outcome="passed", seconds=0.1, seed=0)
    code = (
        "import sys; from pathlib import Path; from tests.long import ledger\n"
        f"for i in range(20): ledger.write(Path({str(file)!r}), sys.argv[1] + str(i), {entry!r})"
    )

    def writer(name: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, name], check=True, env=environment)

    with ThreadPoolExecutor() as pool:
        list(pool.map(writer, "abcd"))
    assert len(ledger.read(file)) == 80
    assert list(tmp_path.iterdir()) == [file]
    assert list(json.loads(file.read_text())) == sorted(ledger.read(file))
