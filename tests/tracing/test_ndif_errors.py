"""What a server says of a failed job becomes its cause, our place, and the fix."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from refusal_nn.backends.ndif._errors import failure_of
from refusal_nn.errors import BackendError, UnavailableError

LINK: Any = SimpleNamespace(
    repo="org/model", service=SimpleNamespace(scrub=lambda text: text.replace("secret", "***"))
)
HEAD = "Traceback (most recent call last):\n"


def frame(path: str, line: int = 3) -> str:
    return f'  File "{path}", line {line}, in f\n    x = f(x)\n        ~^^^^^\n'


def said(*parts: str) -> str:
    error = failure_of(LINK, HEAD + "".join(parts))
    assert isinstance(error, BackendError)
    assert not isinstance(error, UnavailableError)
    return str(error)


def test_the_cause_of_an_error_of_several_lines_comes_first() -> None:
    found = said(
        frame("/home/me/a.py"),
        "RuntimeError: CUDA error: device-side assert triggered\n",
        "CUDA kernel errors might be asynchronously reported at some other API call.\n",
        "\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n",
    )
    assert found.startswith(
        "the job failed on the server at a.py:3: RuntimeError: CUDA error: device-side assert "
        "triggered CUDA kernel errors"
    )
    assert "\n" not in found


def test_of_chained_errors_the_last_is_shown() -> None:
    first = frame("/home/me/a.py", 1) + "KeyError: 'x'\n\n"
    between = "During handling of the above exception, another exception occurred:\n\n" + HEAD
    found = said(first, between, frame("/home/me/b.py", 2), "ValueError: mine, not secret\n")
    assert found == "the job failed on the server at b.py:2: ValueError: mine, not ***"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/home/me/nnsight/study.py", "study.py:3"),
        ("C:\\me\\study.py", "study.py:3"),
        ("/x/refusal_nn/tracing/_walk.py", "refusal_nn/tracing/_walk.py:3"),
    ],
)
def test_the_place_is_the_last_of_the_users_or_ours(path: str, place: str) -> None:
    inner = (
        "/app/.venv/lib/python3.12/site-packages/nnsight/tracing/tracer.py",
        "/app/nnsight/src/nnsight/intervention/envoy.py",
        "/usr/lib/python3.12/contextlib.py",
    )
    found = said(frame(path), *(frame(p, 9) for p in inner), "ValueError: mine\n")
    assert found == f"the job failed on the server at {place}: ValueError: mine"


def test_without_a_place_of_ours_none_is_named() -> None:
    found = said(frame("/usr/lib/python3.12/contextlib.py"), "ValueError: theirs\n")
    assert found == "the job failed on the server: ValueError: theirs"


def test_memory_that_ran_out_is_named_whatever_follows_it() -> None:
    found = said(
        frame("/x/a.py"),
        "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB.\n",
        "See docs.\n",
    )
    assert found.startswith(
        "the server ran out of memory in a job of one batch (torch.OutOfMemoryError"
    )
