"""Values that valid inputs are mutated with."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.cases import Step

TEXTS = (
    "",
    " ",
    ".",
    "..",
    "/",
    "../..",
    "-",
    "--",
    "-1",
    "0",
    "1e999",
    "nan",
    "-inf",
    "9" * 30,
    "9" * 5000,
    "a" * 300,
    "x/" * 2500,
    "\x1b]0;title\x07\x1b[2J",
    "one\rtwo",
    "line\nline",
    "\x9b31m",
    "\u202egpj.exe",
    "\u2028",
    "ü💬 Ω",
    "null",
    "{}",
    "[1, 2",
    "%s%n{0}{x}",
    "'; --",
    "$(touch PWNED)",
    "{{ 7 * 7 }}",
    "../outside",
    "/dev/zero",
    "/dev/null",
    "/proc/self/environ",
    "pipe",
    "missing.jsonl",
    "hub:owner/name",
    "owner/name",
    "http://127.0.0.1:9/x",
    "file:///etc/passwd",
    "~/x",
    "tiny-refuser",
    "stores",
    "work\udcff",
)
"""Words that a careless program stumbles over."""


def texts() -> st.SearchStrategy[str]:
    """Hostile text; may hold a lone surrogate, as an undecodable file name does."""
    return st.one_of(
        st.sampled_from(TEXTS),
        st.sampled_from(TEXTS),
        st.text(max_size=12),
        st.builds(lambda t, n: (t or "z") * n, st.text(max_size=3), st.sampled_from([1, 50, 2000])),
    )


def written(text: str) -> str:
    """A text as UTF-8 can hold it."""
    return text.encode("utf-8", "replace").decode()


def nested(n: int, kind: str = "list") -> Any:
    """Lists or mappings in one another."""
    value: Any = 0
    for _ in range(n):
        value = [value] if kind == "list" else {"a": value}
    return value


def values() -> st.SearchStrategy[Any]:
    """Hostile JSON values."""
    return st.one_of(
        st.sampled_from(
            [
                *(None, True, False, -1, 0, 1, 7, 2**31, 2**63, -(2**70), 10**40, 0.5, 1e308),
                *(float("nan"), float("inf"), "", "x", [], {}, [None], [[]], {"": None}, [0] * 500),
            ]
        ),
        texts(),
        st.integers(-5, 300),
        st.sampled_from([(70, "list"), (300, "dict"), (900, "list")]).map(lambda p: nested(*p)),
        st.lists(st.integers(-3, 9), max_size=4),
    )


def fractions() -> st.SearchStrategy[float]:
    """A place in a file, often its ends."""
    return st.one_of(st.sampled_from([0.0, 0.01, 0.5, 0.99]), st.floats(0, 1, exclude_max=True))


def on_bytes(pattern: str) -> st.SearchStrategy[Step]:
    """Damage to the bytes of a file."""
    return st.tuples(
        st.just("bytes"),
        st.just(pattern),
        st.integers(0, 200),
        st.sampled_from(["cut", "insert", "replace", "drop", "append", "front"]),
        fractions(),
        st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from(
                [
                    b"\x00" * 16,
                    b"\xff\xfe",
                    b"\xff" * 8,
                    b"{",
                    b"}" * 3,
                    b'"',
                    b"\n",
                    b"\r\n\r\n",
                    b"[" * 5000,
                ]
            ),
        ),
    )


def on_json(pattern: str) -> st.SearchStrategy[Step]:
    """Another value at some place of a JSON document, or none."""
    return st.tuples(
        st.just("json"),
        st.just(pattern),
        st.integers(0, 200),
        st.integers(0, 2000),
        st.one_of(st.just(...), values()),
    )


def on_file(pattern: str) -> st.SearchStrategy[Step]:
    """Something else where a file was."""
    what = st.sampled_from(
        [
            ("gone",),
            ("link", "/dev/zero"),
            ("link", "/etc/hostname"),
            ("link", "../../../outside.txt"),
            ("link", "missing"),
            ("link", "."),
            ("pipe",),
            ("folder",),
            ("file", b""),
            ("file", b"{}"),
            ("file", b"[]"),
            ("file", b"null"),
            ("file", b"\x80\x04."),
            ("file", b"[" * 100_000),
            ("file", b'{"a":' * 5000 + b"1" + b"}" * 5000),
            ("large", 300 << 20),
            ("large", 1 << 40),
        ]
    )
    return st.tuples(st.just("instead"), st.just(pattern), st.integers(0, 200), what).map(
        lambda s: (*s[:3], *s[3])
    )
