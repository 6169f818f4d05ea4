"""``runs`` commands on runs that a small analysis makes through its own command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from click.testing import CliRunner, Result

from refusal_nn import _analyses
from refusal_nn.cli import _others, cli
from refusal_nn.store import manifest
from tests.cli import counting
from tests.cli.counting import LAYERS, computed


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    """The analysis is offered as an installed package's is."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (_analyses, _others):
            patch.setattr(module, "others", lambda: counting.ENTRY_POINTS)
        yield


@pytest.fixture(autouse=True)
def _nothing_computed() -> None:
    computed.clear()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def count(*options: object) -> Result:
    return run("count", "norms", "--model", "tiny-refuser", *options)


def stopped(at: int, *options: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "stop_at", at)
        done = count(*options)
    assert done.exit_code == 130, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "stores"
    assert count("--stores", folder, "--name", "whole", "--seed", 1).exit_code == 0
    stopped(4, "--stores", folder, "--name", "half", "--seed", 1)
    return folder


@pytest.fixture
def stores(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "stores")
    return tmp_path / "stores"


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
    assert json.loads(done.stdout)["run"].endswith("half.zarr")
    assert computed == [4, 5]
    np.testing.assert_array_equal(norms(stores / "half.zarr"), norms(stores / "whole.zarr"))


def test_resume_works_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stopped(2, "--name", "count")
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


def test_rerun_reads_what_it_compares_with_before_it_computes(stores: Path) -> None:
    chunk = next(
        p for p in (stores / "whole.zarr" / "direction_norm" / "c").rglob("*") if p.is_file()
    )
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    manifest.write(stores / "whole.zarr")  # whoever sent it can do that, too
    done = run("runs", "rerun", "whole", "--name", "again", "--stores", stores)
    assert done.exit_code == 2, done.stderr
    assert computed == []
    assert not (stores / "again.zarr").exists()


def test_rerun_fails_when_the_numbers_differ(stores: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "length", lambda vector: 0.0)
    done = run("runs", "rerun", "whole", "--name", "again", "--stores", stores)
    assert done.exit_code == 1
    assert "differ from those of whole" in done.stderr


def test_a_run_is_not_compared_with_itself(stores: Path) -> None:
    done = run("runs", "rerun", "whole", "--name", "whole", "--stores", stores)
    assert done.exit_code == 2
    assert "choose another" in done.stderr


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
    assert attrs["command"] == (
        "refusal-nn count norms --model tiny-refuser --stores stores --name whole --seed 1"
    )
    for path in (stores / "whole.zarr").rglob("*.json"):
        assert str(stores.parent) not in path.read_text(encoding="utf-8")
