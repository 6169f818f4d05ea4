"""The README's Python example runs as it is printed, and leaves a run that opens."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import xarray as xr

import refusal_nn
from refusal_nn import store

ROOT = Path(refusal_nn.__file__).parents[1]


def python_example() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = re.search(r"## From Python\n\n```python\n(.+?)```", readme, re.DOTALL)
    assert example is not None
    return example[1]


def test_the_query_at_the_end_finds_the_saved_run_beside_those_of_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkout ships one, and `make demo` makes four, on other prompts."""
    sample = store.sample_run()
    shutil.copytree(sample, tmp_path / "stores" / sample.name)
    with xr.open_zarr(sample, chunks=None) as run:
        saved = run.load().isel(prompt=slice(None, 50))
    saved.attrs["analysis"] = "saved"
    monkeypatch.chdir(tmp_path)
    names = {"rn": refusal_nn, "effect": saved}
    exec("\n".join(python_example().strip().splitlines()[-2:]), names)
    last = python_example().strip().splitlines()[-1]
    found = eval(last, names)
    assert found["run"].values.tolist() == ["effect"]


@pytest.mark.slow
def test_the_python_example_runs_and_shows_the_effect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = python_example()
    monkeypatch.chdir(tmp_path)
    # beside the run that ships with the checkout, and those of the demo
    shutil.copytree(store.sample_run(), tmp_path / "stores" / store.sample_run().name)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    selection = names["best"]
    assert selection.layer is not None  # type: ignore[attr-defined]
    with xr.open_datatree("stores/effect.zarr", engine="zarr") as run:
        assert run.attrs["model"] == "tiny-refuser"
        refused = run["refused"].where(run["harm"] == "harmful").mean("prompt")
    assert float(refused.sel(intervention="baseline")) > 0.9
    assert float(refused.sel(intervention="ablation")) < 0.1
