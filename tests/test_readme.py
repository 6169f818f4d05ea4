"""The README's Python example runs as it is printed, and leaves a run that opens."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
import xarray as xr

import refusal_nn
from refusal_nn import store
from refusal_nn.cli import cli

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
    saved.attrs["analysis"] = "responses-evaluate"  # as what rn.evaluate returns says
    monkeypatch.chdir(tmp_path)
    names = {"rn": refusal_nn, "effect": saved}
    exec("\n".join(python_example().strip().splitlines()[-2:]), names)
    last = python_example().strip().splitlines()[-1]
    found = eval(last, names)
    assert found["run"].values.tolist() == ["effect"]


@pytest.mark.long
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


def command_lines() -> list[str]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"```sh\n(.+?)```", text, re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("refusal-nn ") and "..." not in line]


@pytest.mark.parametrize("line", command_lines())
def test_every_printed_command_is_one_that_the_command_line_takes(line: str) -> None:
    command: click.Command = cli
    words = shlex.split(line)[1:]
    context = click.Context(cli, info_name="refusal-nn")
    while isinstance(command, click.Group):
        found = command.get_command(context, words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    command.make_context("refusal-nn", list(words), parent=context)
