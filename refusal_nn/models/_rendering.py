"""Rendering a chat template of a stranger within bounds of time, memory and output.

The sandbox is that of ``transformers``: no attribute with an underscore, nothing changed in place, at
most 100,000 numbers in a range. It bounds neither loops in loops nor what one operation makes, so:

- powers, products of two unknowns, long repetitions and filters and tests but those that templates of
  chats use are refused before the template is compiled, since one of them may take for ever in a single
  step;
- it is compiled, in a time that its length bounds, before it is rendered;
- the lines that a rendering runs are counted, and what is asked for beyond the memory of now is limited.
  That limit would hold for other threads too, so where there are any the process is watched instead;
- the text may be only so much longer than the instruction.

What is left is a single step of the interpreter on structures nested in themselves many times over,
which nothing here ends.
"""

from __future__ import annotations

import contextlib
import mmap
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

MAX_TEMPLATE = 1 << 20
"""Most characters of a template."""
MAX_OUTPUT = 1 << 20
"""Most characters that it may write around an instruction."""
MAX_LINES = 1_000_000
"""Most lines of its code, and of what that calls, that may run."""
MAX_SECONDS = 60.0
"""A second bound, for lines that take long."""
MAX_MEMORY = 1 << 30
"""Most bytes that it may ask for."""
MAX_GROWTH = 4 << 30
"""Most bytes that the process may grow by meanwhile where other threads ask for memory too."""
_STATM, _PAGE = Path("/proc/self/statm"), mmap.PAGESIZE
MAX_TIMES = 1000
"""Most often that a text is repeated."""
MAX_INDENT = 100
"""Most characters that a line is indented by."""
_CHOOSING = {"map", "select", "reject", "selectattr", "rejectattr"}
_FILTERS = _CHOOSING | {
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
    *(
        "format",
        "groupby",
        "indent",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "max",
        "min",
    ),
    *(
        "replace",
        "reverse",
        "round",
        "safe",
        "sort",
        "string",
        "striptags",
        "title",
        "tojson",
        "trim",
    ),
    *("sum", "unique", "upper", "urlencode", "wordcount"),
}
_TESTS = {
    *("!=", "<", "<=", "==", ">", ">=", "boolean", "callable", "defined", "divisibleby", "eq"),
    *("equalto", "even", "false", "float", "ge", "greaterthan", "gt", "in", "integer", "iterable"),
    *("le", "lessthan", "lower", "lt", "mapping", "ne", "none", "number", "odd", "sameas"),
    *("sequence", "string", "true", "undefined", "upper"),
}
"""Filters and tests that do not take far longer than what they are given is long."""
_WIDE = re.compile(r"(\{[^{}\s]*:|%)[^\s{}%]{0,8}?\d{5}")
_lock = threading.Lock()


class Unbounded(Exception):  # noqa: N818 - what a template is
    """A template that does more than any for chats."""


def check_template(source: str) -> None:
    """Refuse what no template of a chat has and what may take for ever in a single step; compile it.

    Compiling takes time with the template's length alone, and a rendering finds it done.

    Raises
    ------
    Unbounded
    """
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if len(source) > MAX_TEMPLATE:
        raise Unbounded(f"it is longer than {MAX_TEMPLATE:,} characters")
    environment = _compile_jinja_template("").environment
    tree = environment.parse(source)
    if next(tree.find_all(nodes.Pow), None) is not None:
        raise Unbounded("it computes a power")
    for product in tree.find_all(nodes.Mul):
        _check_product(product)
    for used in tree.find_all((nodes.Filter, nodes.Test)):
        if used.name in (environment.filters, environment.tests)[isinstance(used, nodes.Test)]:
            _check_used(used)  # of a name that is none the compiler tells
    for value in tree.find_all(nodes.Const):
        if isinstance(value.value, str) and _WIDE.search(value.value):
            raise Unbounded("it formats to a great width")
    with _lock, _memory():  # constants are computed now
        try:
            _compile_jinja_template(source)
        except MemoryError as error:
            raise Unbounded("it asks for more memory than any template of a chat") from error


def _check_product(product: Any) -> None:
    from jinja2 import nodes

    parts = (product.left, product.right)
    fixed = [part.value for part in parts if isinstance(part, nodes.Const)]
    if not fixed:
        raise Unbounded("it multiplies two values that are known only when it runs")
    if any(isinstance(value, int) and value > MAX_TIMES for value in fixed):
        raise Unbounded(f"it repeats something more than {MAX_TIMES:,} times")
    # nothing in one expression is repeated twice over
    if any(
        next(part.find_all((nodes.Mul, nodes.List, nodes.Tuple)), None) for part in parts
    ) or any(isinstance(part, nodes.Mul | nodes.List | nodes.Tuple) for part in parts):
        raise Unbounded("it multiplies a list or a product")


def _check_used(used: Any) -> None:
    from jinja2 import nodes

    if isinstance(used, nodes.Test):
        if used.name not in _TESTS:
            raise Unbounded(f"it uses the test {used.name[:40]}")
        return
    if used.name not in _FILTERS:
        raise Unbounded(f"it uses the filter {used.name[:40]}")
    given = [*used.args, *(keyword.value for keyword in used.kwargs)]
    if used.dyn_args is not None or used.dyn_kwargs is not None:
        raise Unbounded("it gives a filter arguments that are known only when it runs")
    if used.name == "sum" and (len(used.args) > 1 or any(k.key == "start" for k in used.kwargs)):
        raise Unbounded("it adds up things that are no numbers")
    if used.name == "format" and not isinstance(used.node, nodes.Const):
        raise Unbounded("it formats by a text that is known only when it runs")
    if used.name == "round" and given:
        raise Unbounded("it rounds to a number of digits")
    if used.name in ("indent", "tojson") and any(
        not isinstance(value, nodes.Const)
        or (isinstance(value.value, int | str) and _length(value.value) > MAX_INDENT)
        for value in given
    ):
        raise Unbounded(f"it indents by more than {MAX_INDENT}")
    named = {"map": (0, _FILTERS - {"round"}), "select": (0, _TESTS), "reject": (0, _TESTS),
             "selectattr": (1, _TESTS), "rejectattr": (1, _TESTS)}.get(used.name)  # fmt: skip
    if named is not None and len(used.args) > named[0]:
        name = used.args[named[0]]
        if not isinstance(name, nodes.Const) or name.value not in named[1]:
            raise Unbounded(f"it uses {used.name} with something that no template of a chat does")
        more = len(given) > named[0] + 1
        if name.value in _CHOOSING | {"format"} or (
            name.value in ("indent", "sum", "tojson") and more
        ):
            raise Unbounded(f"it uses {used.name} with {name.value}")


def _length(value: int | str) -> int:
    return len(value) if isinstance(value, str) else value


def bounded(render: Callable[[], Any], most: int) -> str:
    """What ``render()`` writes, ended where it does more than it may.

    Parameters
    ----------
    render : callable
    most : int
        Characters beyond which the text is refused.

    Raises
    ------
    Unbounded
        If it runs too long, asks for too much memory or writes too much.
    """
    with _lock, _memory(), _lines():
        try:
            text = str(render())
        except MemoryError as error:
            raise Unbounded("it asks for more memory than any template of a chat") from error
    if len(text) > most:
        raise Unbounded(f"it writes {len(text):,} characters for one instruction")
    return text


@contextlib.contextmanager
def _lines() -> Iterator[None]:
    left, end = MAX_LINES, time.monotonic() + MAX_SECONDS

    def count(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or (left % 256 == 0 and time.monotonic() > end):
            raise Unbounded("it runs longer than any template of a chat")
        if watched and left % 16 == 0 and _resident() > most:
            raise MemoryError
        return count

    watched = threading.active_count() > 1
    most = _resident() + MAX_GROWTH if watched else 0
    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


def _resident() -> int:
    """Bytes of memory that the process holds; 0 where that is not told."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * _PAGE
    except OSError:
        return 0


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """Limit what may be asked for, which holds for the whole process: only while no other thread runs."""
    try:
        import resource

        pages = int(_STATM.read_text(encoding="ascii").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError):  # not Linux: memory is bounded by the lines alone
        yield
        return
    if threading.active_count() > 1:
        yield
        return
    most = pages * _PAGE + MAX_MEMORY
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
