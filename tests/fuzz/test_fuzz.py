"""Whatever somebody else's input is, a command is done, or says one sentence and ends with 1 or 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.cases import KINDS
from tests.fuzz.summary import Row
from tests.long.tier import Extent
from tests.patience import limit

ROOT = Path(__file__).parents[2]
SHARDS, EACH = 20, 100
"""20 times 100 of each of five kinds are 10,000, 300 of them real processes."""


@pytest.mark.parametrize(
    "shard",
    [
        pytest.param(n, marks=pytest.mark.long(n=500, sample=0 if n else 500, seed=n))
        for n in range(SHARDS)
    ],
)
def test_every_case_is_done_or_told_in_one_sentence(
    shard: int, extent: Extent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ROOT / "build" / "fuzz" if extent.full else tmp_path
    report = folder / f"{shard}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz", "--seed", str(shard), "--each", str(EACH)),
            *("--processes", "3" if extent.full else "2", "--report", str(report)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=limit(600),
        check=False,
    )
    with capsys.disabled():
        if extent.full:  # `python -m tests.fuzz --total build/fuzz/*.jsonl` adds them up
            print(f"\n{done.stdout}", flush=True)
    assert report.is_file(), done.stderr
    rows = Row.read(report)
    assert [row.line() for row in rows if row.faults] == [], done.stdout
    assert done.returncode == 0, done.stderr
    assert len(rows) == extent.n == EACH * len(KINDS)
    assert sum(row.parsed for row in rows) >= len(rows) / 2, done.stdout
