"""``runs`` commands on runs that a small command of this file makes through the real recorder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from refusal_nn import store
from refusal_nn.cli import Root, cli
from refusal_nn.cli._options import json_option, run_options, seed_option
from refusal_nn.cli._output import show
from refusal_nn.cli._request import command_line, request

LAYERS = 6
computed: list[int] = []


@click.command(name="count")
@seed_option
@click.option("--stop-at", type=int, default=-1, help="Interrupt at this batch.")
@run_options
@json_option
def count(seed: int, stop_at: int, stores: Path, name: str | None, resume: bool) -> None:
    """Store the norms of seeded random vectors, one layer a batch."""
    template = xr.Dataset(
        {"direction_norm": ("layer", np.full(LAYERS, np.nan))},
        coords={"layer": np.arange(LAYERS)},
    )
    batches = [{"layer": slice(i, i + 1)} for i in range(LAYERS)]

    def compute(i: int) -> xr.Dataset:
        if i == stop_at and not resume:
            raise KeyboardInterrupt
        computed.append(i)
        value = np.linalg.norm(np.random.default_rng([seed, i]).normal(size=8))
        return template.isel(batches[i]).fillna(value)

    recorder = store.RunRecorder(
        stores / f"{name or 'count'}.zarr",
        fingerprint=store.fingerprint({"seed": seed}),
        provenance={
            "analysis": "count",
            "model": "none",
            "revision": "",
            "tokenizer_hash": "0" * 16,
            "template_hash": "raw",
            "dtype": "float64",
            "device": "cpu",
            "backend": "local",
            "prompts_hash": "0" * 64,
            "interventions": [],
            "seed": seed,
            "versions": store.versions(["numpy"]),
            "command": command_line(),
        },
        request=request(),
    )
    with recorder:
        recorder.commit({"/": recorder.stage("norms", template, batches, compute)})
    show({"path": recorder.path})


@pytest.fixture(autouse=True)
def _with_count(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Root.get_command
    monkeypatch.setattr(
        Root,
        "get_command",
        lambda self, ctx, name: count if name == "count" else original(self, ctx, name),
    )
    computed.clear()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    folder = tmp_path / "stores"
    assert run("count", "--stores", folder, "--name", "whole", "--seed", 1).exit_code == 0
    stopped = run("count", "--stores", folder, "--name", "half", "--seed", 1, "--stop-at", 4)
    assert stopped.exit_code == 130, stopped.stderr
    computed.clear()
    return folder


def norms(path: Path) -> np.ndarray:
    return xr.open_zarr(path, chunks=None)["direction_norm"].values


def test_list_tells_complete_from_partial(stores: Path) -> None:
    done = run("runs", "list", "--stores", stores, "--json")
    listed = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert {name: entry["state"] for name, entry in listed.items()} == {
        "whole": "complete",
        "half": "partial",
    }
    assert listed["whole"]["attrs"]["seed"] == 1
    words = run("runs", "list", "--stores", stores, "--state", "partial").stdout.splitlines()
    assert [line.split()[:2] for line in words] == [["name", "state"], ["half", "partial"]]


def test_list_of_a_missing_folder_exits_2(tmp_path: Path) -> None:
    done = run("runs", "list", "--stores", tmp_path / "none")
    assert done.exit_code == 2
    assert "--stores" in done.stderr


def test_show_describes_variables_and_how_far_a_partial_run_got(stores: Path) -> None:
    whole = json.loads(run("runs", "show", "whole", "--stores", stores, "--json").stdout)
    assert whole["groups"]["/"]["dims"] == {"layer": LAYERS}
    assert whole["groups"]["/"]["variables"]["direction_norm"]["dims"] == ["layer"]
    half = json.loads(run("runs", "show", "half", "--stores", stores, "--json").stdout)
    assert half["stages"] == {"norms": [4, LAYERS]}
    words = run("runs", "show", "whole", "--stores", stores).stdout
    assert "Euclidean norm" in words


def test_a_run_is_named_by_its_path_too(stores: Path) -> None:
    by_path = run("runs", "show", stores / "whole.zarr", "--json")
    assert json.loads(by_path.stdout)["name"] == "whole"


def test_verify_passes_a_sound_run_and_fails_a_flipped_byte(stores: Path) -> None:
    sound = run("runs", "verify", "whole", "--stores", stores, "--json")
    assert sound.exit_code == 0
    assert json.loads(sound.stdout) == [{"run": "whole", "ok": True, "problems": []}]
    chunk = next(path for path in (stores / "whole.zarr/direction_norm/c").rglob("*"))
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(content)
    broken = run("runs", "verify", "whole", "--stores", stores)
    assert broken.exit_code == 1
    assert "direction_norm" in broken.stdout


def test_verify_without_a_name_checks_every_run(stores: Path) -> None:
    done = run("runs", "verify", "--stores", stores, "--json")
    assert done.exit_code == 1
    state = {entry["run"]: entry for entry in json.loads(done.stdout)}
    assert state["whole"]["ok"] is True
    assert "incomplete" in state["half"]["problems"][0]


def test_resume_computes_only_what_is_missing_and_ends_with_the_same_numbers(
    stores: Path,
) -> None:
    done = run("runs", "resume", "half", "--stores", stores, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["path"].endswith("half.zarr")
    assert computed == [4, 5]
    np.testing.assert_array_equal(norms(stores / "half.zarr"), norms(stores / "whole.zarr"))


def test_resume_works_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("count", "--stop-at", 2).exit_code == 130
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = run("runs", "resume", "../stores/count")
    assert done.exit_code == 0, done.stderr
    assert computed == [0, 1, 2, 3, 4, 5]
    assert (tmp_path / "stores/count.zarr").is_dir()


def test_resume_of_a_complete_run_says_so(stores: Path) -> None:
    """A kill may come after the last rename: there is nothing left to do, and nothing wrong."""
    done = run("runs", "resume", "whole", "--stores", stores)
    assert done.exit_code == 0
    assert "already complete" in done.stderr


def test_rerun_makes_the_run_again_and_compares(stores: Path) -> None:
    done = run("runs", "rerun", "whole", "--name", "again", "--stores", stores)
    assert done.exit_code == 0, done.stderr
    assert computed == list(range(LAYERS))
    assert "arrays and labels equal those of whole" in done.stderr
    np.testing.assert_array_equal(norms(stores / "again.zarr"), norms(stores / "whole.zarr"))


def test_rerun_fails_when_the_numbers_differ(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np.linalg, "norm", lambda x: 0.0)
    done = run("runs", "rerun", "whole", "--name", "again", "--stores", stores)
    assert done.exit_code == 1
    assert "differ from those of whole" in done.stderr


@pytest.mark.parametrize("before", ["", "--log-level info ", "--log-level=demo "])
def test_a_run_of_the_demo_is_not_made_again_alone(stores: Path, before: str) -> None:
    """Repeating its command would repeat the whole demo, under other names."""
    root = stores / "whole.zarr" / "zarr.json"
    content = json.loads(root.read_text(encoding="utf-8"))
    content["attributes"] |= {
        "command": f"refusal-nn {before}demo --stores stores",
        "analysis": "direction-score",
    }
    root.write_text(json.dumps(content), encoding="utf-8")
    done = run("runs", "rerun", "whole", "--name", "again", "--stores", stores)
    assert done.exit_code == 2
    assert "one of the four that `refusal-nn demo` made" in done.stderr
    assert "make this step with `refusal-nn direction score`" in done.stderr
    assert computed == []


def test_export_writes_a_table_with_every_value(stores: Path, tmp_path: Path) -> None:
    done = run("runs", "export", "whole", tmp_path / "norms.csv", "--stores", stores)
    assert done.exit_code == 0, done.stderr
    lines = (tmp_path / "norms.csv").read_text(encoding="utf-8").splitlines()
    header = lines[0].split(",")
    column = header.index("direction_norm")
    got = [float(line.split(",")[column]) for line in lines[1:]]
    np.testing.assert_allclose(got, norms(stores / "whole.zarr"), rtol=1e-12)


def test_rm_asks_first_and_removes_only_runs(stores: Path, tmp_path: Path) -> None:
    asked = CliRunner().invoke(cli, ["runs", "rm", "whole", "--stores", str(stores)], input="n\n")
    assert asked.exit_code == 1
    assert (stores / "whole.zarr").is_dir()
    done = run("runs", "rm", "whole", "half", "--stores", stores, "--yes")
    assert done.exit_code == 0, done.stderr
    assert list(stores.glob("*.zarr*")) == []
    (tmp_path / "precious.zarr").mkdir()
    refused = run("runs", "rm", tmp_path / "precious.zarr", "--yes")
    assert refused.exit_code == 2
    assert (tmp_path / "precious.zarr").is_dir()


def test_recorded_provenance_has_no_path_of_this_machine(stores: Path) -> None:
    attrs: dict[str, Any] = xr.open_zarr(stores / "whole.zarr", chunks=None).attrs
    assert attrs["command"] == "refusal-nn count --stores stores --name whole --seed 1"
    for path in (stores / "whole.zarr").rglob("*.json"):
        assert str(stores.parent) not in path.read_text(encoding="utf-8")
