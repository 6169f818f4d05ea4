"""The benchmark scripts run, and what they compare is the same work.

Timings are not tested here: a tiny model on a shared machine says nothing about them.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.patience import limit

ROOT = Path(__file__).parents[2]
CONDITIONS = {"model", "n_layers", "d_model", "vocab_size", "dtype", "threads", "pairs", "versions"}


@cache
def result(script: str) -> dict:
    """What a script prints in quick mode; a warning or anything beside the JSON is a failure."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), "--quick", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=limit(60),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "script",
    [
        "capture.py",
        "generation.py",
        "candidate_sweep.py",
        "edge_attribution.py",
        "attribution_agreement.py",
    ],
)
def test_one_json_object_says_what_was_compared(script):
    found = result(script)
    assert found.keys() >= CONDITIONS
    assert found["threads"] == 1
    assert found["pairs"] >= 2


def test_captures_and_logits_equal_those_of_plain_hooks():
    found = result("capture.py")
    assert found["ratio"] > 0
    assert found["largest_activation"] > 1
    assert found["max_abs_diff_capture"] <= 1e-5 * found["largest_activation"]
    assert found["max_abs_diff_logits"] <= 1e-5 * found["largest_logit"]


def test_generated_tokens_equal_those_of_plain_hooks_and_the_ablation_matters():
    found = result("generation.py")
    assert found["ratio"] > 0
    assert found["tokens_identical"] is True
    assert found["tokens_changed_by_ablation"] is True


def test_the_sweep_chooses_what_the_serial_loops_choose():
    found = result("candidate_sweep.py")
    assert found["same_choice"] is True
    assert isinstance(found["selected"]["layer"], int)
    assert found["selected"]["position"] < 0
    assert found["speedup_same_choice"] > 0


def test_the_full_table_equals_that_of_the_serial_loops():
    found = result("candidate_sweep.py")
    assert found["max_abs_diff"] <= 1e-5
    assert found["speedup_full_table"] > 0


def test_the_sweep_is_of_a_problem_that_has_a_choice():
    found = result("candidate_sweep.py")
    assert 0.03 <= found["admissible_fraction"] <= 0.25
    assert found["class_means"]["harmless"] < 0 < found["class_means"]["harmful"]
    assert 0 < found["candidates_measured"]["bypass"] < found["candidates"]


def test_edges_out_of_the_input_carry_the_integrated_gradient_of_the_embedding():
    found = result("edge_attribution.py")
    assert found["ratio_to_floor"] > 0
    assert 0 < found["extra_gb"] < 2
    assert found["scores"][0] == found["prompts"] == 16
    assert (found["tokens"], found["steps"]) == (32, 5)
    assert found["largest_input"] > 0.1
    assert found["max_abs_diff_input"] <= 1e-4 * found["largest_input"]


def test_methods_are_compared_with_exact_patching_of_the_embedded_model():
    found = result("attribution_agreement.py")
    assert found["edges"] == 1997
    for method in ("atp", "eap-ig", "clean-corrupted"):
        agreement = found[f"node_{method}"]
        assert -1 <= agreement[f"node_{method}_pearson"] <= 1
    assert found["node_eap-ig"]["node_eap-ig_pearson"] > 0.5


def test_attribution_needs_no_more_memory_for_twice_the_pairs():
    found = result("attribution_memory.py")
    few, many = found["pairs"]
    assert (few, many) == (80, 160)
    assert found["dense_mb"][str(many)] > 70
    assert found["ratio"] < 1.3, found["peak_extra_mb"]
    assert found["peak_extra_mb"][str(many)] < 2 * found["dense_mb"][str(many)]


def test_a_table_names_what_its_entries_are_of(capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    show = importlib.import_module("_measure").show
    found = {"pairs": [80, 160], "peak_extra_mb": {80: 1.5, 160: 2.5}, "versions": {"torch": "2"}}
    show(found, as_json=False)
    said = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert {name: of.strip() for name, of in said.items()} == {
        "pairs": "[80, 160]",
        "peak_extra_mb 80": "1.5",
        "peak_extra_mb 160": "2.5",
        "torch": "2",
    }
