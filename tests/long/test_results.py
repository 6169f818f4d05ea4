"""Every long test has run in full, and its result is in the tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.long import ledger
from tests.patience import limit

RESULTS = Path(__file__).with_name("RESULTS.json")
FAILS_SOMEWHERE = {
    "tests/organisms/test_train_tiny_refuser.py::test_training_from_scratch_meets_every_bar": (
        "on the machine of the last record no candidate is admissible in any of five draws, and the code "
        "at c3db3e6 trained there misses the same bar with the same score; why is not known (that the "
        "processor's rounding decides is a guess). The shipped weights are tested in every run"
    ),
}
"""Long tests that fail on the machine of the record, and why that is no fault of the code at hand."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def there_are(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int, int]]:
    """Every long test there is: how many of what it counts, how many in a sample, and the seed."""
    file = tmp_path_factory.mktemp("long") / "tests.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "tests", "-m", "long", "--collect-only", "-q"),
            *("-p", "no:cacheprovider", "--list-long", str(file)),
        ],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},
        capture_output=True,
        text=True,
        timeout=limit(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return {name: tuple(mark) for name, mark in json.loads(file.read_text()).items()}


def test_every_long_test_has_passed_in_full(there_are: dict[str, tuple[int, int, int]]) -> None:
    results = ledger.read(RESULTS)
    assert sorted(there_are.keys() - results.keys()) == [], "not run yet: `make test-long`"
    for name, (n, _, seed) in there_are.items():
        wanted = "failed" if name in FAILS_SOMEWHERE else "passed"
        assert results[name]["outcome"] == wanted, name
        assert results[name]["n"] >= n, name
        assert results[name]["seed"] == seed, name


def test_every_result_is_that_of_a_test_there_is(
    there_are: dict[str, tuple[int, int, int]],
) -> None:
    gone = sorted(ledger.read(RESULTS).keys() - there_are.keys())
    assert gone == [], f"take out of {RESULTS.name} what is no longer tested"


def test_the_document_is_sorted_and_complete() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    results = json.loads(text)
    assert text == json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    for name, entry in results.items():
        assert entry.keys() == ledger.Entry.__annotations__.keys(), name
