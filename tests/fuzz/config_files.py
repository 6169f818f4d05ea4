"""Config files: valid ones of every command that takes one, most with something changed."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.cases import Case
from tests.fuzz.commands import COMPLETE, leaves, lines, options, world
from tests.fuzz.hostile import on_bytes, on_file, texts, written

_DOCUMENTS = (
    "",
    "# nothing\n",
    "- a\n- b\n",
    "text\n",
    "--- {}\n--- {}\n",
    "a: &a [x, x]\nb: &b [*a, *a, *a, *a]\nc: &c [*b, *b, *b, *b]\nd: [*c, *c, *c, *c]\n",
    "seed: &x [*x]\n",
    "seed: &x {y: *x}\n",
    "<<: {seed: 1}\n",
    "? [seed, 1]\n: 2\n",
    "? {a: 1}\n: 2\n",
    "seed: !!python/object/apply:os.system ['touch PWNED']\n",
    "seed: !!python/name:os.system\n",
    "!!python/object/new:os.system [touch PWNED]\n",
    "seed: !!binary aGVsbG8=\n",
    "seed: !!set {a, b}\n",
    "seed: !!timestamp 2020-01-01\n",
    "seed: !x 1\n",
    "%YAML 9.9\n---\nseed: 1\n",
    "seed: 1\nseed: 2\n",
    "\tseed: 1\n",
    "seed: |\n  1\n  2\n",
    "seed: 'a\x00b'\n",
    'seed: "\\0"\n',
    'name: "\\x1b]0;t\\a"\n',
    'seed: "\\ud800"\n',
    "config: valid.yaml\n",
    "json: true\n",
    "help: true\n",
    "trust-remote-code: true\n",
    "host: http://127.0.0.1:9\n",
    "backend: ndif\n",
    "stores: /dev\n",
    "seed: 12_3\n",
    "seed: 0x10\n",
    "seed: 1e3\n",
    "seed: ~\n",
    "seed:\n",
    "seed: []\n",
    "seed: [[1]]\n",
    "seed: {a: 1}\n",
    ": 1\n",
    "'': 1\n",
    "--seed: 1\n",
    "SEED: 1\n",
    f"{'k' * 3000}: 1\n",
    f"seed: {'9' * 5000}\n",
    f"name: {'n' * 400}\n",
    f"seed: {'[' * 5000}\n",
    f"seed: {'[' * 5000}{']' * 5000}\n",
    "seed: " + "{a: " * 900 + "1" + "}" * 900 + "\n",
    "- " * 3000 + "x\n",
)
"""Documents that are no mapping of options, or hold one that is not what it seems."""


@st.composite
def cases(draw: Any) -> Case:
    """A command that is given a config file."""
    with_config = [n for n, c in leaves().items() if any("--config" in p.opts for p in c.params)]
    slow = ("demo", "patch heads", "patch positions", "circuit evaluate", "circuit compare")
    name = draw(st.sampled_from([n for n in with_config if n not in slow] * 3 + with_config))
    words = draw(lines(name, most=1))
    entries = draw(options(leaves()[name], most=4))
    mapping = [(flag.lstrip("-"), "true" if value is None else value) for flag, value in entries]
    mapping = [(key.removeprefix("no-"), value) for key, value in mapping]
    how = draw(
        st.sampled_from(
            ["valid"] * 6
            + ["value"] * 5
            + ["shape"] * 2
            + ["key"] * 2
            + ["document"] * 4
            + ["bytes"] * 2
            + ["file"] * 2
        )
    )
    if how in ("value", "shape", "key") and mapping:
        at = draw(st.integers(0, len(mapping) - 1))
        key, value = mapping[at]
        if how == "value":
            mapping[at] = (key, draw(texts()))
        elif how == "key":
            mapping[at] = (draw(texts()), value)
        else:
            mapping[at] = (
                key,
                draw(st.sampled_from([[value], [value, value], {}, {"a": value}, [[value]], None])),
            )
    body = "".join(f"{_key(key)}: {_scalar(value)}\n" for key, value in mapping)
    if how == "document":
        body += draw(st.sampled_from(_DOCUMENTS))
    if how == "valid":
        body = draw(st.sampled_from(["", "﻿", "# a comment\n", "---\n"])) + body
    steps: list[Any] = [*world(*COMPLETE), ("write", "given.yaml", written(body))]
    if how == "bytes":
        steps.append(draw(on_bytes("given.yaml")))
    elif how == "file":
        steps.append(draw(on_file("given.yaml")))
    return Case("config", (*words, "--config", "given.yaml"), tuple(steps))


def _key(key: str) -> str:
    return key if key.replace("-", "").isalnum() and key.isascii() else json.dumps(written(key))


def _scalar(value: Any) -> str:
    if (
        isinstance(value, str)
        and value.replace("-", "").replace(".", "").isalnum()
        and value.isascii()
    ):
        return value
    return json.dumps(written(value) if isinstance(value, str) else value)
