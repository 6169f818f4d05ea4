"""What is shipped: the package list, the pins, the wheel's contents, the documented commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import refusal_nn
from tests.patience import limit

ROOT = Path(refusal_nn.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _source_packages() -> set[str]:
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for path in (ROOT / "refusal_nn").rglob("__init__.py")
    }
    return found | {"refusal_nn.cli"}


def _data_files() -> set[str]:
    """Every file in the package that is not Python source or a cache."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "refusal_nn").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }


def test_the_list_of_packages_matches_the_folders() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == _source_packages()


def test_every_folder_with_python_files_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "refusal_nn").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_data_file_is_shipped() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    shipped = {
        path.relative_to(ROOT).as_posix()
        for package, globs in patterns.items()
        for pattern in globs
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
        if path.is_file()
    }
    assert _data_files() - shipped == set()


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[canonicalize_name(name)] = version
    declared = PROJECT["project"]["dependencies"] + [
        item for extra in PROJECT["project"]["optional-dependencies"].values() for item in extra
    ]
    for text in declared:
        requirement = Requirement(text)
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} excludes the pin {version}"


def test_the_pins_are_what_these_tests_run_with() -> None:
    different = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            installed = metadata.version(name).split("+")[0]
            if installed != version:
                different.append(f"{name}: pinned {version}, installed {installed}")
    assert different == []


def test_the_readme_s_test_command_is_a_target_that_runs_pytest() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"<!-- test-command -->\n```sh\n(.+?)\n```", readme, re.DOTALL)
    assert block is not None
    assert block[1] == "make test"
    planned = subprocess.run(
        ["make", "-n", "test"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        timeout=limit(10),
    )
    assert "-m pytest" in planned.stdout


def test_ci_runs_the_command_the_readme_gives() -> None:
    script = (ROOT / ".ci/run").read_text(encoding="utf-8")
    extract = re.search(r"awk '(.+?)' README\.md", script)
    assert extract is not None
    got = subprocess.run(
        ["awk", extract[1], "README.md"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert got.stdout == "make test\n"


def test_every_make_target_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", ".ci/run", "CHANGELOG.md"):
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert named <= targets, name


def test_the_readme_s_table_names_the_nouns_there_are() -> None:
    from refusal_nn.cli import NOUNS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z]+)` \|", readme, re.MULTILINE)) == set(NOUNS)


def test_the_wheel_installs_nothing_at_top_level_but_the_package(tmp_path: Path) -> None:
    source = tmp_path / "source"
    # git's view of the tree: what a fresh clone would hold, plus what is not committed yet
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source],
        check=True,
        capture_output=True,
        timeout=limit(60),
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        archive.extractall(tmp_path / "site")
    info = f"refusal_nn-{refusal_nn.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"refusal_nn", info}
    assert _data_files() <= set(names)
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "refusal_nn").rglob("*.py")} <= set(
        names
    )
    for path in (ROOT / "cli").glob("*.py"):
        assert f"refusal_nn/cli/{path.name}" in names
    # away from the checkout, so that only the wheel can answer
    done = subprocess.run(
        [sys.executable, "-m", "refusal_nn", "models", "list", "--json"],
        capture_output=True,
        text=True,
        timeout=limit(20),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0, done.stderr
    assert '"tiny-refuser"' in done.stdout
