"""Rendering a chat template of a stranger within bounds of time, memory and output.

The sandbox is that of ``transformers``: no attribute with an underscore, nothing changed in place, at
most 100,000 numbers in a range. It bounds neither loops in loops nor what one operation makes, so:

- powers, products of two unknowns and rounding to many digits are refused before the template is
  compiled, since one of them may take for ever in a single step;
- the lines that run are counted, and what is asked for beyond the memory of now is limited;
- the text may be only so much longer than the instruction.

What is left is a single step of the interpreter on structures nested in themselves many times over,
which nothing here ends.
"""

from __future__ import annotations

import contextlib
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
_lock = threading.Lock()


class Unbounded(Exception):  # noqa: N818 - what a template is
    """A template that does more than any for chats."""


def check_template(source: str) -> None:
    """Refuse what no template of a chat has and what may take for ever in a single step.

    Raises
    ------
    Unbounded
    """
    from jinja2 import nodes
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if len(source) > MAX_TEMPLATE:
        raise Unbounded(f"it is longer than {MAX_TEMPLATE:,} characters")
    tree = _compile_jinja_template("").environment.parse(source)
    if next(tree.find_all(nodes.Pow), None) is not None:
        raise Unbounded("it computes a power")
    for product in tree.find_all(nodes.Mul):
        if not any(isinstance(part, nodes.Const) for part in (product.left, product.right)):
            raise Unbounded("it multiplies two values that are known only when it runs")
    for used in tree.find_all(nodes.Filter):
        if used.name == "round" and (used.args or used.kwargs):
            raise Unbounded("it rounds to a number of digits")


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
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        now = pages * resource.getpagesize()
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, OSError):  # not Linux: memory is bounded by the lines alone
        yield
        return
    most = now + MAX_MEMORY
    if soft != resource.RLIM_INFINITY:
        most = min(most, soft)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
