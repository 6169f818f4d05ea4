"""A package of somebody else adds an analysis: command, run, resume, dry run, list, verify, report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from tests.patience import limit

PACKAGE = Path(__file__).parent / "package"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the package is installed into."""
    site = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    for file in PACKAGE.iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--disable-pip-version-check", "--target", site, source),
        ],
        check=True,
        capture_output=True,
        timeout=limit(120),
    )
    return site


def environment(site: Path) -> dict[str, str]:
    above = os.environ.get("PYTHONPATH", "")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(site), above]))}


def python(env: dict[str, str], *argv: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=limit(120),
        cwd=ROOT,
        env=env,
    )


def printed(env: dict[str, str], code: str) -> str:
    done = python(env, "-c", code)
    done.check_returncode()
    return done.stdout


def refusal_nn(site: Path, *argv: Any) -> subprocess.CompletedProcess[str]:
    return python(environment(site), "-m", "refusal_nn", *argv)


def done(site: Path, *argv: Any) -> Any:
    result = refusal_nn(site, *argv, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def measured(stores: Path, name: str, *more: str) -> list[str]:
    where = ["--stores", str(stores), "--name", name]
    return ["norms", "measure", "--model", "tiny-refuser", "--prompts", "tiny-bench", *where, *more]


@pytest.fixture(scope="module")
def stores(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the run of the analysis, whole."""
    stores = tmp_path_factory.mktemp("stores")
    done(site, *measured(stores, "whole", "--batch-size", "32"))
    return stores


def test_the_package_is_small() -> None:
    assert len((PACKAGE / "norms.py").read_text(encoding="utf-8").splitlines()) <= 120


def test_help_lists_the_command_without_importing_the_package(site: Path) -> None:
    code = (
        "import sys\n"
        "from click.testing import CliRunner\n"
        "from refusal_nn.cli import cli\n"
        "for words in (['--help'], ['norms', '--help'], ['norms', 'measure', '--help']):\n"
        "    print(CliRunner().invoke(cli, words).output)\n"
        "print(sorted({'norms', 'torch'} & set(sys.modules)))\n"
    )
    told = printed(environment(site), code)
    assert re.search(r"^  norms +Added by norms\.$", told, re.MULTILINE)
    assert re.search(r"^  measure +Norm of the residual stream", told, re.MULTILINE)
    assert re.search(r"--scale FLOAT +What the norms are divided by\. +\[default: 1\.0\]", told)
    assert told.splitlines()[-1] == "[]"


def test_its_run_is_listed_shown_and_verified(site: Path, stores: Path) -> None:
    (run,) = (r for r in done(site, "runs", "list", "--stores", stores) if r["name"] == "whole")
    assert run["attrs"]["analysis"] == "norms-measure"
    assert run["attrs"]["options"] == {"prompts": "tiny-bench", "scale": 1.0}
    shown = done(site, "runs", "show", "whole", "--stores", stores)
    assert shown["groups"]["/"]["variables"]["stream_norm"]["units"] == "residual stream units"
    assert done(site, "runs", "verify", "whole", "--stores", stores)[0]["ok"]
    assert done(site, *measured(stores, "whole", "--batch-size", "7"))["reused"]


def test_a_killed_run_is_resumed_to_the_same_store(site: Path, stores: Path) -> None:
    argv = measured(stores, "killed", "--batch-size", "32")
    dying = textwrap.dedent(
        f"""
        import os, signal
        import refusal_nn.store.run_recorder as recorder
        report, calls = recorder.report, []
        def dies(progress, stage, done, total):
            calls.append(done)
            if done == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            report(progress, stage, done, total)
        recorder.report = dies
        from refusal_nn.cli import cli
        cli({argv!r}, prog_name="refusal-nn")
        """
    )
    killed = python(environment(site), "-c", dying)
    assert killed.returncode == -signal.SIGKILL
    shown = done(site, "runs", "show", "killed", "--stores", stores)
    assert (shown["state"], shown["stages"]["norms"][0]) == ("partial", 4)
    result = refusal_nn(site, "runs", "resume", "killed", "--stores", stores)
    assert result.returncode == 0, result.stderr
    whole, again = (xr.open_zarr(stores / f"{name}.zarr").load() for name in ("whole", "killed"))
    xr.testing.assert_equal(whole, again)


def test_a_dry_run_gives_the_same_numbers(site: Path, stores: Path) -> None:
    done(site, *measured(stores, "dry", "--backend", "dry-run", "--batch-size", "32"))
    whole, dry = (xr.open_zarr(stores / f"{name}.zarr").load() for name in ("whole", "dry"))
    np.testing.assert_allclose(dry["stream_norm"], whole["stream_norm"], rtol=1e-6)


def test_its_section_is_in_the_report(site: Path, stores: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done(site, "report", "whole", "--stores", stores, "--output", page)
    text = page.read_text(encoding="utf-8")
    assert "## Norms" in text
    assert "The stream is longest at the input of layer" in text


@pytest.fixture
def among_ours(site: Path, tmp_path: Path) -> dict[str, str]:
    """The environment where a package adds verbs to nouns of ours."""
    info = tmp_path / "among-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: among\nVersion: 0.1\n")
    names = ("direction-probe", "circuit-show", "attribute-probe", "report-probe")
    lines = [f"{name} = norms:measure" for name in names]
    (info / "entry_points.txt").write_text("\n".join(["[refusal_nn.analyses]", *lines]))
    found = environment(site)
    return {**found, "PYTHONPATH": os.pathsep.join([str(tmp_path), found["PYTHONPATH"]])}


def test_a_verb_of_a_noun_of_ours_comes_after_our_own(among_ours: dict[str, str]) -> None:
    code = (
        "import sys\n"
        "import click\n"
        "from click.testing import CliRunner\n"
        "from refusal_nn.cli import NOUNS, cli\n"
        "top = click.Context(cli)\n"
        "print(cli.list_commands(top) == [*NOUNS, 'norms'])\n"
        "for noun in ('direction', 'circuit'):\n"
        "    group = cli.get_command(top, noun)\n"
        "    print(*group.list_commands(click.Context(group)))\n"
        "for words in (['--help'], ['direction', '--help'], ['direction', 'probe', '--help'],\n"
        "              ['circuit', 'show', '--help']):\n"
        "    print(CliRunner().invoke(cli, words).output)\n"
        "print(sorted({'norms', 'torch'} & set(sys.modules)))\n"
    )
    told = printed(among_ours, code)
    assert told.splitlines()[:3] == [
        "True",
        "evaluate extract score select probe",
        "compare discover evaluate export show",
    ]
    assert len(re.findall(r"^  direction ", told, re.MULTILINE)) == 1
    assert re.search(r"^  direction +Find the direction that mediates", told, re.MULTILINE)
    assert re.search(r"^  probe +Norm of the residual stream", told, re.MULTILINE)
    assert re.search(r"--scale FLOAT +What the norms are divided by\.", told)
    assert re.search(r"^Usage: \S+ circuit show .*CIRCUIT$", told, re.MULTILINE)
    assert told.splitlines()[-1] == "[]"


def test_a_verb_of_a_noun_of_ours_runs(among_ours: dict[str, str], tmp_path: Path) -> None:
    argv = ["direction", "probe", *measured(tmp_path / "stores", "probed")[2:], "--json"]
    ran = python(among_ours, "-m", "refusal_nn", *argv)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["run"].endswith("probed.zarr")


def test_a_noun_of_ours_that_has_no_verbs_says_so(among_ours: dict[str, str]) -> None:
    said = partial(python, among_ours, "-m", "refusal_nn")
    refused = said("attribute", "probe", "--model", "tiny-refuser")
    assert refused.returncode == 2
    assert "attribute-probe of package norms" in refused.stderr
    assert "refusal_nn.record" in refused.stderr
    # a word after report is the name of a run
    run = said("report", "probe")
    assert "no run" in run.stderr
    assert "without verbs" not in run.stderr


def test_a_broken_package_costs_one_line(site: Path, stores: Path, tmp_path: Path) -> None:
    info = tmp_path / "broken-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(
        "[refusal_nn.analyses]\nbroken-thing = broken_thing:thing\nnorms-other = norms:absent\n"
    )
    env = environment(site)
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env["PYTHONPATH"]])

    said = partial(python, env, "-m", "refusal_nn")
    listed = said("--help")
    assert listed.returncode == 0, listed.stderr
    assert "broken" in listed.stdout
    below = said("norms", "--help")
    assert below.returncode == 0, below.stderr
    assert re.search(r"^  measure +Norm of", below.stdout, re.MULTILINE)
    assert re.search(r"^  other +Broken: ", below.stdout, re.MULTILINE)
    used = said("broken", "thing")
    assert used.returncode == 2
    assert "cannot be read as an analysis" in used.stderr
    assert "Traceback" not in used.stderr
    assert said("runs", "list", "--stores", str(stores)).returncode == 0
