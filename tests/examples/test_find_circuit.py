"""The circuit example runs as printed and says what it found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

import refusal_nn

SCRIPT = Path(refusal_nn.__file__).parents[1] / "examples" / "find_circuit.py"


@pytest.mark.long
def test_the_circuit_example_finds_tests_and_keeps_a_circuit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--draws", "9"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "of 1997 edges" in done.stdout
    tested = xr.open_datatree(tmp_path / "stores" / "refusal-circuit.zarr", engine="zarr")
    assert float(tested["faithfulness"]) > 0.8
    assert (tmp_path / "figures" / "refusal-circuit.svg").read_text().lstrip().startswith("<")
    assert (tmp_path / "figures" / "refusal-circuit.json").stat().st_size > 1000
