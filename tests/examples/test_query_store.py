"""The example a user would start from runs as written, and its probe does not cheat."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import xarray as xr

import refusal_nn
from tests.patience import limit
from tests.report import synthetic
from tests.report.test_sources import _save

SCRIPT = Path(refusal_nn.__file__).parents[1] / "examples" / "query_store.py"
SIGNAL_LAYER = 2


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("query_store", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _activations(*, seed: int = 0) -> xr.Dataset:
    """Families far apart, prompts of one family almost equal, harm in one layer alone."""
    rng = np.random.default_rng(seed)
    coords = synthetic.prompt_coords(12)
    family, harm = coords["family"][1], coords["harm"][1]
    names = list(dict.fromkeys(family))
    centre = rng.normal(0, 1, (len(names), 3, 64))
    values = centre[[names.index(f) for f in family]]
    values = values + rng.normal(0, 0.05, values.shape)
    values[harm == "harmful", SIGNAL_LAYER, 0] += 8
    return xr.Dataset(
        {"activation": (("prompt", "layer", "position", "d_model"), values[:, :, None])},
        coords={"layer": np.arange(3), "position": [-1], **coords},
        attrs={**synthetic.provenance("activations-collect"), "site": "resid_pre"},
    )


def test_the_probe_finds_harm_where_it_is_and_does_not_learn_families(example: ModuleType) -> None:
    auc = example.probe(_activations())
    assert float(auc.sel(layer=SIGNAL_LAYER)) > 0.99
    for layer in (0, 1):
        assert abs(float(auc.sel(layer=layer)) - 0.5) < 0.15


def test_shares_by_category_are_those_of_the_run(example: ModuleType) -> None:
    root = synthetic.evaluation().to_dataset()
    table = example.refused_by_category(root)
    here = (root["style"].values == "toxic") & (root["category"].values == "illegal")
    wanted = root["refused"].sel(intervention="baseline").values[here].mean()
    assert table.loc["illegal", "baseline"] == pytest.approx(wanted)
    assert table.shape == (len(synthetic.CATEGORIES), len(synthetic.CONDITIONS))


def test_the_script_runs_on_a_folder_of_runs(tmp_path: Path) -> None:
    _save(synthetic.evaluation(), tmp_path / "stores" / "evaluate")
    _save(_activations(), tmp_path / "stores" / "activations")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), "--stores", "stores"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(SCRIPT.parents[1]), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=limit(60),
    )
    assert done.returncode == 0, done.stderr
    assert "direction-evaluate" in done.stdout
    assert "AUC of a linear probe" in done.stdout
    assert (tmp_path / "figures" / "evaluate-categories.svg").is_file()
