"""The signature and declaration of an analysis, read from its text: importing it would load torch."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from refusal_nn.errors import RequestError

REQUIRED = object()
"""The default of an argument that has none."""


@dataclass(frozen=True)
class Parameter:
    """One argument: its default, its annotation, and what its docstring says of it.

    Attributes
    ----------
    name, annotation : str
    default
    choices : tuple of str
        From a type such as ``{"top", "greedy"}``.
    bounds : tuple of str or None
        From a type such as ``float in (0, 1]``: bracket, least, largest, bracket.
    summary : str
        First sentence.
    """

    name: str
    annotation: str
    default: Any
    choices: tuple[str, ...] = ()
    bounds: tuple[str, str, str, str] | None = None
    summary: str = ""


@dataclass(frozen=True)
class Signature:
    """An analysis as its text declares it.

    Attributes
    ----------
    target : str
        ``module:function``.
    summary : str
        First sentence of its docstring.
    parameters : dict of str to Parameter
        In order, the recorder left out.
    runs : dict of str to tuple of str
        Arguments that are results of other analyses, and of which.
    splits : dict of str to str
        Split that an argument takes by default.
    section : str
        ``module:function`` that makes its part of a report; empty if it has none.
    """

    target: str
    summary: str
    parameters: Mapping[str, Parameter]
    runs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    section: str = ""


@cache
def read_signature(target: str) -> Signature:
    """Read the declaration at ``module:function``.

    Raises
    ------
    RequestError
        If the text is not there, or the function is not declared in it by literals.
    """
    module, _, name = target.partition(":")
    try:
        tree = _tree(module)
        function = next(
            node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name
        )
        declared = next(c for c in map(_declaration, function.decorator_list) if c is not None)
    except (OSError, SyntaxError, ValueError, StopIteration, ImportError) as error:
        raise RequestError(
            f"{target} cannot be read as an analysis ({type(error).__name__}: {error}); its entry point "
            "must name the module that holds the function's text, decorated with analysis."
        ) from error
    doc = ast.get_docstring(function) or ""
    said = _documented(doc)
    arguments = function.args
    names = [*arguments.posonlyargs, *arguments.args]
    none = [None] * (len(names) - len(arguments.defaults))
    defaults = [*none, *arguments.defaults, *arguments.kw_defaults]
    found = {}
    for argument, default in zip([*names, *arguments.kwonlyargs], defaults, strict=True):
        kind, summary = said.get(argument.arg, ("", ""))
        found[argument.arg] = Parameter(
            argument.arg,
            ast.unparse(argument.annotation) if argument.annotation else "",
            REQUIRED if default is None else _value(default, tree),
            tuple(re.findall(r'"([^"]+)"', kind)) if "{" in kind else (),
            _bounds(kind),
            summary,
        )
    found.pop("recorder", None)
    runs = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in declared["runs"].items()}
    summary, splits, section = doc.partition("\n\n")[0], declared["splits"], declared["section"]
    return Signature(target, summary, found, runs, splits, section)


@cache  # several analyses stand in one module
def _tree(module: str) -> ast.Module:
    """The parsed text of a module, found without importing it or the packages above it."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None:
        raise ImportError(f"there is no module {top!r}")
    folders = spec.submodule_search_locations
    path = Path(folders[0] if folders else str(spec.origin)).joinpath(*rest)
    if path.is_dir():
        path /= "__init__.py"
    return ast.parse(path.with_suffix(".py").read_text(encoding="utf-8"))


def _declaration(decorator: ast.expr) -> dict[str, Any] | None:
    """The literals of a decorator ``analysis(...)``; None for another."""
    if not isinstance(decorator, ast.Call):
        return None
    if ast.unparse(decorator.func).rpartition(".")[2] != "analysis":
        return None
    given = {k.arg: k.value for k in decorator.keywords}
    empty: dict[str, Any] = {"runs": {}, "splits": {}, "section": ""}
    return {k: ast.literal_eval(given[k]) if k in given else v for k, v in empty.items()}


def _value(node: ast.expr, tree: ast.Module) -> Any:
    """A default: a literal, or a name that its module, or the one it is imported from, gives a literal."""
    if not isinstance(node, ast.Name):
        return ast.literal_eval(node)
    for statement in tree.body:
        if isinstance(statement, ast.Assign) and node.id in map(ast.unparse, statement.targets):
            return ast.literal_eval(statement.value)
        if isinstance(statement, ast.ImportFrom) and statement.module:
            for alias in statement.names:
                if node.id == (alias.asname or alias.name):
                    return _value(ast.Name(alias.name), _tree(statement.module))
    raise ValueError(f"the default {node.id} is no literal")


def _bounds(kind: str) -> tuple[str, str, str, str] | None:
    """Brackets and ends of a documented type such as ``float in (0, 1]``."""
    found = re.search(r"(?:int|float) in ([\[(])(\S+), (\S+)([\])])", kind)
    return (found[1], found[2], found[3], found[4]) if found else None


def _documented(doc: str) -> dict[str, tuple[str, str]]:
    """Type and first sentence of each argument in a numpy docstring."""
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", doc, re.M | re.S)
    if section is None:
        return {}
    found = {}
    for entry in re.finditer(r"^(\S.*)\n((?:^ +.*\n?|^\n)*)", section[1] + "\n", re.M):
        names, _, kind = entry[1].partition(" : ")
        text = " ".join(entry[2].split())
        sentence = re.split(r"(?<=\.)\s", text)[0]
        for name in names.split(", "):
            found[name] = (kind, sentence)
    return found
