"""Command lines: valid ones of every command, most of them with a word or two changed."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.cases import Case
from tests.fuzz.commands import COMPLETE, PARTIAL, cheap, leaves, lines, names, world
from tests.fuzz.hostile import texts

_LOOSE = (
    "--help",
    "-h",
    "--version",
    "--json",
    "--no-such-option",
    "--log-level",
    "--backend",
    "ndif",
    "dry-run",
    "--resume",
    "--detach",
    "--trust-remote-code",
    "--host",
    "http://127.0.0.1:9",
    "--deadline",
    "--stores",
    "--config",
    "--",
    "-x",
    "--name",
    "--split",
    "test",
    "runs",
)


_NUMBERS = (
    *("--batch-size", "--seed", "--max-new-tokens", "--top", "--steps", "--draws", "--resamples"),
    *("--max-heads", "--edges", "--fraction", "--threshold", "--faithfulness", "--confidence"),
    *(
        "--consensus",
        "--kl-max",
        "--induce-min",
        "--layer-fraction",
        "--alpha",
        "--min-effect",
        "-n",
    ),
    *("--positions", "--layers", "--refusal-tokens", "--against"),
)


def _sizes() -> st.SearchStrategy[str]:
    """Numbers and lists of them at the ends of what a type can hold, and beyond."""
    numbers = (
        "0",
        "-1",
        "1",
        "1e-300",
        "1e300",
        "nan",
        "inf",
        "-inf",
        "0x10",
        "1_0",
        "٣",
        " 1",
        "1.0",
    )
    large = ("4294967296", "9223372036854775807", "9223372036854775808", "9" * 25, "9" * 4400)
    lists = ("-1,-1", "0,", ",", "-99", "99", "-1,0,1", "1" + ",1" * 3000, "all", "none", "-0")
    return st.sampled_from((*numbers, *large, *lists))


@st.composite
def cases(draw: Any) -> Case:
    """A command line and what it names."""
    name = draw(names())
    words = draw(lines(name))
    depth = len(name.split())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 1, 1, 2, 4]))):
        how = draw(
            st.sampled_from(["value", "value", "value", "drop", "double", "add", "swap", "command"])
        )
        at = draw(st.integers(depth, max(depth, len(words) - 1)))
        if how == "add" or at >= len(words):
            words.insert(at, draw(st.one_of(st.sampled_from(_LOOSE), texts())))
        elif how == "value":
            numbers = words[at - 1] in _NUMBERS and draw(st.booleans())
            words[at] = draw(_sizes() if numbers else texts())
        elif how == "drop":
            del words[at]
        elif how == "double":
            words.insert(at, words[at])
        elif how == "swap":
            other = draw(st.integers(depth, len(words) - 1))
            words[at], words[other] = words[other], words[at]
        else:
            words[:depth] = draw(st.sampled_from(list(leaves()))).split()
    if words[0] == "demo" and not {"--prompts", "--max-new-tokens"} <= {*words}:
        words += cheap("demo")  # with all its prompts it takes minutes, as it should
    runs = (*COMPLETE, *PARTIAL) if _names_runs(name) else ()
    files: list[Any] = [*world(*runs), ("make", "pipe", "pipe")]
    return Case("arguments", tuple(_typed(words)), tuple(files))


def _names_runs(name: str) -> bool:
    return name.split()[0] in ("direction", "circuit", "runs", "report", "remote", "demo", "patch")


def _typed(words: list[str]) -> list[str]:
    """Words as a shell can pass them: without NUL, not too long together."""
    kept = [word.replace("\0", "")[:20_000] for word in words]
    return [
        w.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape") if _ok(w) else "?"
        for w in kept
    ]


def _ok(word: str) -> bool:
    try:
        word.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
