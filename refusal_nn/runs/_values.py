"""Recorded arguments, checked against what an analysis declares that it takes."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from refusal_nn._signature import Parameter
from refusal_nn.errors import RequestError
from refusal_nn.interventions import from_json
from refusal_nn.runs._call import RECORDABLE, SETS
from refusal_nn.store._attrs import canonical


class NotOneError(ValueError):
    """A recorded value is not what its argument takes."""


def decoded(entry: Any, parameter: Parameter) -> Any:
    """An argument from its record, if it is of a kind and type that the analysis declares."""
    if not isinstance(entry, dict) or len(entry) != 1:
        raise NotOneError
    ((kind, content),) = entry.items()
    annotation = parameter.annotation
    if kind == "value":
        if not fits(content, parameter):
            raise NotOneError
        return content
    if kind == "each" and "Mapping" in annotation and isinstance(content, dict):
        return {key: decoded(one, parameter) for key, one in content.items()}
    if kind == "interventions" and "Intervention" in annotation:
        return from_json(canonical(content))
    if kind in SETS and SETS[kind].__name__ in annotation:
        return _rows(SETS[kind], content)
    if kind in RECORDABLE and RECORDABLE[kind].__name__ in annotation:
        try:
            return RECORDABLE[kind].from_attrs(content)
        except (KeyError, TypeError, ValueError, AttributeError, RequestError) as error:
            raise NotOneError(f"not a {RECORDABLE[kind].__name__}") from error
    raise NotOneError


def _rows(made: Callable[..., Any], content: Any) -> Any:
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not isinstance(content.get("name"), str):
        raise NotOneError("it holds no rows")
    for row in rows:
        texts = row.values() if isinstance(row, dict) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise NotOneError("a row is not one of texts")
    return made.from_rows(rows, name=content["name"])  # type: ignore[attr-defined]


def fits(value: Any, parameter: Parameter) -> bool:
    """Whether a plain value is of an argument's declared type, one of its choices, within its bounds."""
    if value is None or value == parameter.default:
        return value == parameter.default or _is_of(value, _parsed(parameter.annotation))
    if not _is_of(value, _parsed(parameter.annotation)):
        return False
    if parameter.choices and isinstance(value, str):
        return value in parameter.choices
    if parameter.bounds is not None and isinstance(value, int | float):
        left, low, high, right = parameter.bounds
        above = value > float(low) if left == "(" else value >= float(low)
        return above and (value < float(high) if right == ")" else value <= float(high))
    return True


def _parsed(annotation: str) -> ast.expr:
    return ast.parse(annotation or "None", mode="eval").body


def _is_of(value: Any, kind: ast.expr) -> bool:
    """Whether plain data are of an annotation that plain data can be of."""
    match kind:
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="str"):
            return isinstance(value, str)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _is_of(value, left) or _is_of(value, right)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return value in ast.literal_eval(ast.unparse(choices))
        case ast.Subscript(value=ast.Name(id="Sequence" | "list" | "tuple"), slice=inner):
            of = inner.elts[0] if isinstance(inner, ast.Tuple) else inner
            return isinstance(value, list) and all(_is_of(one, of) for one in value)
        case ast.Subscript(value=ast.Name(id="Mapping" | "dict"), slice=ast.Tuple(elts=[_, of])):
            return isinstance(value, dict) and all(_is_of(one, of) for one in value.values())
    # of any other type, an empty list or mapping is all that plain data can be
    return value in ([], {})
