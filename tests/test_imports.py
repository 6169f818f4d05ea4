"""The import contract: which layer may import which, and what stays out of start-up."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import refusal_nn
from tests.patience import limit

ROOT = Path(refusal_nn.__file__).parents[1]

# Lowest first. A module may import its own entry and those below; modules of one row do not import
# each other. `organisms` are the scripts that make the embedded models: nothing rests on them.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "_lazy", "_renamed", "_terminal"),
    ("_files", "_memory"),  # what is read of a user's or a stranger's
    ("evaluation", "recorded"),  # old names
    ("_signature",),
    ("_analyses",),  # how an analysis is declared; the analyses are found by name
    ("store",),
    ("models",),
    ("prompts",),
    ("judges",),
    ("stats",),
    ("interventions",),
    ("shipped",),
    ("tracing",),
    ("backends",),
    ("runs",),
    ("contrasts",),
    ("responses",),
    ("attribution", "directions", "patching"),
    ("circuits",),
    ("plots",),
    ("report",),
    ("demo",),
    ("testing",),
    ("organisms",),
    ("cli",),
)
# May be imported where torch is not installed.
TORCH_FREE = (
    *("errors", "_lazy", "_terminal", "_files", "_memory", "_signature", "_analyses"),
    *("store", "prompts", "judges", "stats"),
)


def _files() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "refusal_nn").rglob("*.py")):
        relative = path.relative_to(ROOT / "refusal_nn")
        if len(relative.parts) > 1 or relative.stem not in ("__init__", "__main__"):
            yield _layer(relative.with_suffix("").parts), path
    for path in sorted((ROOT / "cli").rglob("*.py")):
        yield "cli", path


def _layer(parts: Sequence[str]) -> str:
    return "organisms" if tuple(parts[:2]) == ("models", "organisms") else parts[0]


def _running(path: Path) -> Iterator[ast.AST]:
    """The nodes of a file that run: those of TYPE_CHECKING blocks do not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for child in ast.walk(statement)
    }
    return iter([node for node in ast.walk(tree) if node not in skipped])


def _imported_layers(path: Path) -> Iterator[tuple[int, str]]:
    """Line and layer of every import of ours that runs."""
    for node in _running(path):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if node.module != "refusal_nn":
                names = [str(node.module)]
        for name in names:
            parts = name.split(".")
            if parts[0] == "refusal_nn" and len(parts) > 1 and parts[1] != "__version__":
                yield getattr(node, "lineno", 0), _layer(parts[1:])


def _rank(layer: str) -> int:
    for rank, row in enumerate(LAYERS):
        if layer in row:
            return rank
    pytest.fail(f"refusal_nn.{layer} has no place in LAYERS; give it one")


def test_imports_point_downward_only() -> None:
    upward = []
    for layer, path in _files():
        for line, imported in _imported_layers(path):
            if imported != layer and _rank(imported) >= _rank(layer):
                upward.append(f"{path.relative_to(ROOT)}:{line}: {layer} imports {imported}")
    assert upward == []


def _module(path: Path) -> str:
    names = [n for n in path.relative_to(ROOT).with_suffix("").parts if n != "__init__"]
    return ".".join(names if names[0] == "refusal_nn" else ["refusal_nn", *names])


def _imports_of_files() -> dict[str, set[str]]:
    """Each file of ours and those whose code runs when it is imported, but for packages it is in."""
    files = {_module(path): path for _, path in _files()}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set()
        for node in _running(path):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {full if full in files else str(node.module) for full in inner}
        # a package's own __init__ has begun before any file in it
        graph[name] = {f for f in found & set(files) if not name.startswith(f"{f}.")} - {name}
    return graph


def test_no_two_files_import_each_other_not_even_round_a_corner() -> None:
    graph = _imports_of_files()
    state: dict[str, bool] = {}  # False: being followed, True: done
    circles = []

    def follow(name: str, way: tuple[str, ...]) -> None:
        if state.get(name) is False:
            circles.append(" -> ".join((*way[way.index(name) :], name)))
        if name in state:
            return
        state[name] = False
        for other in sorted(graph[name]):
            follow(other, (*way, name))
        state[name] = True

    for name in sorted(graph):
        follow(name, ())
    assert circles == []


def test_what_travels_imports_only_what_is_where_it_arrives() -> None:
    # nnsight itself loads models by huggingface_hub
    there = {"torch", "numpy", "nnsight", "huggingface_hub", *sys.stdlib_module_names}
    wrong = [
        f"{path.name}:{node.lineno}: {name}"
        for path in sorted((ROOT / "refusal_nn" / "shipped").glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
        )
        if name.split(".")[0] not in there and not name.startswith("refusal_nn.shipped.")
    ]
    assert wrong == []


def test_torch_free_layers_import_no_layer_that_needs_torch() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {layer} imports {imported}"
        for layer, path in _files()
        if layer in TORCH_FREE
        for line, imported in _imported_layers(path)
        if imported not in TORCH_FREE
    ]
    assert wrong == []


@pytest.mark.parametrize("layer", TORCH_FREE)
def test_a_torch_free_layer_imports_where_torch_is_missing(layer: str) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'nnsight'):\n"
        "    sys.modules[name] = None  # an import of it raises ImportError\n"
        f"import refusal_nn.{layer}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=limit(20), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_nothing_of_it() -> None:
    code = (
        "import sys, refusal_nn\n"
        "dir(refusal_nn)\n"
        "heavy = {'torch', 'numpy', 'xarray', 'zarr', 'transformers', 'nnsight', 'click'}\n"
        "ours = {name for name in sys.modules if name.startswith('refusal_nn.')}\n"
        "print(sorted(heavy & set(sys.modules)) + sorted(ours))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=limit(10), cwd=ROOT
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize("name", refusal_nn.__all__)
def test_every_public_name_resolves_and_is_listed(name: str) -> None:
    assert getattr(refusal_nn, name) is not None
    assert name in dir(refusal_nn)


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("models", "Limits", "backends"),
        ("models", "Service", "backends"),
        ("tracing", "DryRun", "backends"),
        ("tracing", "Remote", "backends"),
        ("evaluation", "evaluate", "responses"),
        ("recorded", "Keeping", "runs"),
    ],
)
def test_an_old_name_still_works_and_says_the_new_one(old: str, name: str, new: str) -> None:
    where = importlib.import_module(f"refusal_nn.{old}")
    with pytest.warns(DeprecationWarning, match=rf"is now refusal_nn\.{new}\.{name}"):
        found = getattr(where, name)
    assert found is getattr(importlib.import_module(f"refusal_nn.{new}"), name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        getattr(importlib.import_module("refusal_nn.models"), "nonsense")  # noqa: B009


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_modle'"):
        refusal_nn.load_modle  # noqa: B018


def _subpackages() -> list[str]:
    return sorted(
        f"refusal_nn.{path.parent.name}"
        for path in (ROOT / "refusal_nn").glob("*/__init__.py")
        if not path.parent.name.startswith("_")
    )


@pytest.mark.parametrize("package", _subpackages())
def test_every_name_a_package_exports_exists_and_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert missing == []
    silent = [
        name
        for name in module.__all__
        if inspect.isroutine(value := getattr(module, name)) or inspect.isclass(value)
        if not inspect.getdoc(value)
    ]
    assert silent == []
