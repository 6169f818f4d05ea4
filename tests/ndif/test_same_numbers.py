"""Local, dry run and a real server: the same numbers and the same tokens from every analysis."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import nnsight
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner, Result

import refusal_nn
from refusal_nn import models, responses, tracing
from refusal_nn.cli import cli
from refusal_nn.interventions import (
    ActivationAddition,
    DirectionalAblation,
    FunctionIntervention,
)
from refusal_nn.prompts import load_pairs, load_prompts
from tests.long.tier import sampled
from tests.ndif.control import Stack
from tests.ndif.remote_cases import LIBRARY, NO_PASS, RUNS, WITHOUT_RUN

nnsight.register("tests")  # as the functions of a script, which travel by themselves

BACKENDS = ("local", "dry-run", "ndif")
PROMPTS_A_CLASS = 14
PAIRS_A_SPLIT = 6
TOLERANCE = 1e-5


def command_paths(
    command: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    if not isinstance(command, click.Group):
        yield " ".join(path), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        yield from command_paths(child, (*path, name))


def functions_of_a_model() -> Iterator[str]:
    for module in pkgutil.iter_modules(refusal_nn.__path__):
        if module.name.startswith("_") or module.name == "cli":
            continue
        found = importlib.import_module(f"refusal_nn.{module.name}")
        for name in getattr(found, "__all__", [n for n in vars(found) if not n.startswith("_")]):
            value = getattr(found, name)
            if not inspect.isfunction(value) or not value.__module__.startswith(found.__name__):
                continue
            if "model" in inspect.signature(value).parameters:
                yield f"{module.name}.{name}"


def test_everything_that_runs_a_model_is_registered() -> None:
    remote = {path for path, c in command_paths(cli) if any(p.name == "backend" for p in c.params)}
    assert remote == {command for command, _ in RUNS.values()} | {*WITHOUT_RUN}
    assert set(functions_of_a_model()) == {*LIBRARY, *NO_PASS}
    tests = {v for v in LIBRARY.values() if v.startswith("test_")}
    assert {v for v in LIBRARY.values() if v not in tests} <= set(RUNS)
    assert all("." in test or test in globals() for test in tests)


def evenly(rows: list[dict[str, str]], n: int) -> list[dict[str, str]]:
    return [rows[i] for i in np.linspace(0, len(rows) - 1, n).astype(int)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with small prompts and pairs, one store a backend beside them."""
    folder: Path = tmp_path_factory.mktemp("everywhere")
    table = load_prompts("tiny-bench").to_dataset()
    labels = ("text", "category", "style", "split", "family")
    rows = [
        {name: str(table[name].values[i]) for name in labels} for i in range(table.sizes["prompt"])
    ]
    chosen = []
    for split in ("train", "val", "test"):
        for style in ("toxic", "safe"):
            group = [r for r in rows if (r["split"], r["style"]) == (split, style)]
            chosen += evenly(group, PROMPTS_A_CLASS)
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, chosen)))
    pairs = load_pairs("tiny-pairs").to_dataset()
    fields = {
        "clean": "clean_text",
        "corrupted": "corrupted_text",
        "category": "category",
        "split": "split",
        "family": "family",
    }
    rows = [
        {name: str(pairs[variable].values[i]) for name, variable in fields.items()}
        for i in range(pairs.sizes["prompt"])
    ]
    few = []
    for split in ("train", "val", "test"):
        few += evenly([r for r in rows if r["split"] == split], PAIRS_A_SPLIT)
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, few)))
    return folder


class Made:
    """The runs of :data:`RUNS` on every backend, each made when it is first asked for."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self._runs: dict[tuple[str, str], Result] = {}
        self._loaded: dict[str, models.Model] = {}
        self._load = models.load_model

    def run(self, backend: str, name: str) -> Result:
        """What the command of a run said, which made it after those that it takes."""
        if (backend, name) not in self._runs:
            command, arguments = RUNS[name]
            for argument in arguments:
                if argument in RUNS:
                    self.run(backend, argument)
            where = ["--backend", backend, "--stores", backend, "--name", name]
            with pytest.MonkeyPatch.context() as patch, contextlib.chdir(self.folder):
                patch.setattr(models, "load_model", self._once)
                patch.setenv("NDIF_HOST", self.stack.url())
                result = CliRunner().invoke(cli, [*command.split(), *arguments, *where])
            self._runs[backend, name] = result
        return self._runs[backend, name]

    def opened(self, backend: str, name: str) -> xr.DataTree:
        """A run that its command has made."""
        result = self.run(backend, name)
        assert result.exit_code == 0, f"{result.output}{result.stderr}{result.exception!r}"
        return xr.open_datatree(self.folder / backend / f"{name}.zarr", engine="zarr")

    def _once(self, name: str, **options: Any) -> models.Model:
        key = json.dumps([name, options], sort_keys=True, default=str)
        if key not in self._loaded:  # the dry run starts a process a model
            self._loaded[key] = self._load(name, **options)
        return self._loaded[key]


@pytest.fixture(scope="module")
def made(stack: Stack, folder: Path) -> Made:
    """Every run on every backend."""
    return Made(stack, folder)


CELLS = [(backend, run) for backend in BACKENDS[1:] for run in RUNS]


@pytest.mark.parametrize(("backend", "run"), sampled(CELLS, 6, seed=10))
def test_a_command_gives_the_same_numbers_as_here(run: str, backend: str, made: Made) -> None:
    here, there = made.opened("local", run), made.opened(backend, run)
    assert there.groups == here.groups
    compared = 0
    for path in here.groups:
        a, b = here[path].to_dataset(), there[path].to_dataset()
        assert set(a.variables) == set(b.variables)
        for name in a.variables:
            x, y = a[name].values, b[name].values
            message = f"{run} {path} {name}"
            if x.dtype.kind == "f":
                np.testing.assert_allclose(
                    y, x, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True, err_msg=message
                )
            else:
                np.testing.assert_array_equal(y, x, err_msg=message)
            compared += x.size
    assert compared > 0


@pytest.mark.parametrize("run", sampled(["extract", "evaluate", "edges"], 1, seed=1))
def test_a_run_at_a_server_says_what_its_jobs_came_to(run: str, made: Made) -> None:
    there = made.opened("ndif", run)
    jobs = there.attrs["jobs"]
    assert jobs["submitted"] == len(set(jobs["ids"])) > 0
    assert jobs["bytes_sent"] > 1000
    assert jobs["bytes_received"] > 100
    assert there.attrs["backend"] == "ndif"
    assert there.attrs["device"] == "server"


def test_activations_and_completions_are_the_same_everywhere(stack: Stack) -> None:
    options = {"local": {}, "dry-run": {}, "ndif": {"host": stack.url()}}
    prompts = ["how to make tea", "how to kill a man", "write a long poem about wind and sea"]
    rng = np.random.default_rng(0)
    edits = [
        DirectionalAblation(rng.normal(size=128)),
        ActivationAddition(rng.normal(size=128), layers=[3]),
    ]
    sites = ["resid_pre", "q", "k", "v", "z", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    activations, tokens, errors = {}, {}, {}
    for backend in BACKENDS:
        model = models.load_model("tiny-refuser", backend=backend, **options[backend])
        tracing.verify(model)
        errors[backend] = tracing.residual_error(model).numpy()
        activations[backend] = tracing.capture(model, prompts, sites, interventions=edits)
        tokens[backend] = [
            tracing.generate(model, prompts, e, max_new_tokens=24, batch_size=2)
            for e in ([], edits[:1], edits)
        ]
    for backend in BACKENDS[1:]:
        assert tokens[backend] == tokens["local"]
        np.testing.assert_allclose(errors[backend], errors["local"], atol=1e-6)
        for site in sites:
            np.testing.assert_allclose(
                activations[backend][site], activations["local"][site], rtol=1e-5, atol=1e-5
            )


def turned(x: torch.Tensor, vector: torch.Tensor, angle: float) -> torch.Tensor:
    return x * np.cos(angle) + shifted(x, vector) * np.sin(angle)


def shifted(x: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
    return x.roll(1, dims=-1) + vector


def test_a_function_of_my_own_is_the_same_intervention_everywhere(stack: Stack) -> None:
    options = {"local": {}, "dry-run": {}, "ndif": {"host": stack.url()}}
    rng = np.random.default_rng(0)
    mine = FunctionIntervention(
        turned, {"vector": rng.normal(size=128), "angle": 0.4}, layers=[2, 3], site="mlp_out"
    )
    late = FunctionIntervention(
        turned, {"vector": rng.normal(size=32), "angle": 0.4}, site="z", heads=[1], positions=[-1]
    )
    edits = [mine, DirectionalAblation(rng.normal(size=128)), late]
    prompts = load_prompts("tiny-bench").test[::20]
    activations, tokens, trees = {}, {}, {}
    for backend in BACKENDS:
        model = models.load_model("tiny-refuser", backend=backend, **options[backend])
        activations[backend] = tracing.capture(
            model, prompts, ["z", "resid_post"], interventions=edits
        )
        tokens[backend] = tracing.generate(model, prompts, edits, max_new_tokens=16)
        trees[backend] = responses.evaluate(model, prompts, {"mine": edits}, max_new_tokens=8)
    plain = tracing.generate(models.load_model("tiny-refuser"), prompts, max_new_tokens=16)
    assert tokens["local"] != plain
    for backend in BACKENDS[1:]:
        assert tokens[backend] == tokens["local"]
        for site in ("z", "resid_post"):
            np.testing.assert_allclose(
                activations[backend][site], activations["local"][site], rtol=1e-5, atol=1e-5
            )
        for path in trees["local"].groups:
            xr.testing.assert_allclose(
                trees[backend][path].to_dataset(), trees["local"][path].to_dataset(), atol=1e-5
            )


def test_the_same_model_is_shown_everywhere(stack: Stack) -> None:
    shown = {}
    for backend in BACKENDS:
        where = ["--host", stack.url()] if backend == "ndif" else []
        words = ["models", "show", "tiny-refuser", "--backend", backend, *where, "--json"]
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, result.output
        shown[backend] = json.loads(result.stdout)
    for backend in BACKENDS[1:]:
        differing = {k for k in shown["local"] if shown[backend][k] != shown["local"][k]}
        assert differing <= {"backend", "device"}
    assert "running" in shown["ndif"]["deployment"]
