"""Valid command lines of every command, from the parameters of the commands themselves."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import click
from hypothesis import strategies as st

PROMPTS, PAIRS, TEMPLATE = "prompts.jsonl", "pairs.jsonl", "template.jinja"
COMPLETE = ("scores", "circuit", "candidates", "table", "selected", "sample")
PARTIAL = ("begun", "half")
FAMILIES = ("gpt2", "gemma2", "qwen3_moe")
"""Tiny random models, beside the embedded ones."""
_RUNS = {
    "direction score": ["candidates"],
    "direction select": ["table"],
    "direction evaluate": ["selected"],
    "circuit discover": ["scores"],
    "circuit evaluate": ["circuit"],
    "circuit compare": ["circuit"],
    "circuit export": ["circuit"],
    "circuit show": ["circuit"],
    "runs resume": list(PARTIAL),
    "report": ["scores", "circuit", "candidates", "table", "selected", "sample"],
}
_VALUES: dict[str, list[str]] = {
    "--model": ["planted-gate"],
    "--revision": ["main"],
    "--chat-template": ["raw", TEMPLATE],
    "--host": ["http://127.0.0.1:9"],
    "--deadline": ["1", "0.5"],
    "--device": ["cpu"],
    "--dtype": ["float32", "float64"],
    "--backend": ["local"],
    "--prompts": [PROMPTS],
    "--pairs": [PAIRS],
    "--stores": ["stores"],
    "--name": ["new", "other.run", "a_b-1"],
    "--config": ["valid.yaml"],
    "--positions": ["-1", "-2,-1", "all"],
    "--layers": ["0", "0,1", "1"],
    "--refusal-tokens": ["I", "I,Sure"],
    "--against": ["Sure"],
    "--direction": ["selected"],
    "--metric": ["refusal-log-odds", "kl"],
    "--like": ["advbench", "jailbreakbench"],
    "--column": ["text=text", "category=category"],
    "--label": ["1=harmful", "toxic=harmful"],
    "--category": ["violence", "privacy"],
    "--title": ["A title"],
    "--group": ["rates", "/"],
    "--analysis": ["attribute", "direction-extract"],
    "--max-new-tokens": ["1", "2"],
    "--batch-size": ["1", "2", "64"],
    "--seed": ["0", "1", "7"],
    "--top": ["0", "3"],
    "--steps": ["1", "2"],
    "--draws": ["2", "5"],
    "--resamples": ["0", "3"],
    "--max-heads": ["1", "2"],
    "--edges": ["3", "10"],
    "--fraction": ["0.1"],
    "--threshold": ["0.01"],
    "--faithfulness": ["0.5"],
    "--confidence": ["0", "0.9"],
    "--consensus": ["0.5", "1"],
    "--kl-max": ["10"],
    "--induce-min": ["-100"],
    "--layer-fraction": ["1", "0.8"],
    "--alpha": ["0.05"],
    "--min-effect": ["0", "0.01"],
    "-n": ["1", "2"],
}
_CHEAP = {
    "demo": ["--model", "planted-gate", "--prompts", PROMPTS, "--max-new-tokens", "1"],
    "direction extract": ["--model", "planted-gate", "--prompts", PROMPTS],
    "direction score": ["--prompts", PROMPTS],
    "direction evaluate": ["--prompts", PROMPTS, "--max-new-tokens", "1"],
    "patch positions": ["--model", "planted-gate", "--pairs", PAIRS, "--refusal-tokens", "I"],
    "patch heads": [
        *("--model", "planted-gate", "--pairs", PAIRS, "--refusal-tokens", "I", "--max-heads", "1"),
    ],
    "attribute": ["--model", "planted-gate", "--pairs", PAIRS, "--refusal-tokens", "I"],
    "circuit discover": ["--edges", "5", "--resamples", "2"],
    "circuit evaluate": ["--pairs", PAIRS, "--draws", "2", "--no-grid"],
    "circuit export": ["--output", "circuit.json"],
    "runs rerun": ["--name", "again"],
    "runs rm": ["--yes"],
}
"""What a command is always given, so that it can run, in tenths of a second."""
_DEAR = ("demo", "patch heads", "patch positions", "circuit evaluate")
"""Commands that take longest; drawn less often."""


@cache
def leaves() -> dict[str, click.Command]:
    """The commands by what is typed for them: ``direction extract``."""
    from refusal_nn.cli import cli

    def walk(command: click.Command, words: list[str]) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield " ".join(words), command
            return
        context = click.Context(command)
        for word in command.list_commands(context):
            inner = command.get_command(context, word)
            assert inner is not None
            yield from walk(inner, [*words, word])

    return dict(walk(cli, []))


def names() -> st.SearchStrategy[str]:
    """A command, the slow ones less often."""
    every = list(leaves())
    return st.sampled_from([n for n in every if n not in _DEAR] * 4 + every)


def _arguments(draw: Any, name: str, command: click.Command) -> list[str]:
    words: list[str] = []
    for parameter in command.params:
        if not isinstance(parameter, click.Argument):
            continue
        if parameter.name == "out":
            words.append(draw(st.sampled_from(["out.jsonl" if "prompts" in name else "out.csv"])))
        elif parameter.name == "model":
            words.append(draw(st.sampled_from(["planted-gate", "tiny-refuser"])))
        elif parameter.name in ("prompts", "source"):
            words.append(draw(st.sampled_from([PROMPTS, "tiny-bench"])))
        else:
            pool = _RUNS.get(name, [*COMPLETE, *PARTIAL])
            n = draw(st.integers(1, 3)) if parameter.nargs == -1 else 1
            words += [draw(st.sampled_from(pool)) for _ in range(n)]
    return words


def option_values(option: click.Option) -> st.SearchStrategy[str]:
    """Valid values of an option that takes one."""
    flag = option.opts[0]
    if flag in _VALUES:
        return st.sampled_from(_VALUES[flag])
    if flag == "--output":
        return st.sampled_from(["out.html", "out.md", "out.json", "out.svg", "out.dot"])
    kind = option.type
    if isinstance(kind, click.Choice):
        return st.sampled_from([str(c) for c in kind.choices])
    if isinstance(kind, click.types.IntRange | click.types.IntParamType):
        return st.integers(1, 3).map(str)
    if isinstance(kind, click.types.FloatRange | click.types.FloatParamType):
        return st.sampled_from(["0.25", "0.5", "0.75"])
    return st.sampled_from(["a", "b"])


NEVER = (
    "--help",
    "--host",
    "--backend",
    "--detach",
    "--deadline",
    "--trust-remote-code",
    "--config",
)
"""Options that are drawn by a mutation alone, or by the kind of case they belong to."""


@st.composite
def options(draw: Any, command: click.Command, *, most: int = 3) -> list[tuple[str, str | None]]:
    """Some options of a command with valid values; None for a flag."""
    pool = [
        p
        for p in command.params
        if isinstance(p, click.Option) and p.opts[0] not in NEVER and p.opts[0] != "--json"
    ]
    if not pool:
        return []
    chosen = draw(st.lists(st.sampled_from(pool), max_size=most, unique_by=lambda p: p.opts[0]))
    found: list[tuple[str, str | None]] = []
    for option in chosen:
        if option.is_flag:
            found.append((draw(st.sampled_from([*option.opts, *option.secondary_opts])), None))
        else:
            found.append((option.opts[0], draw(option_values(option))))
    return found


@st.composite
def lines(draw: Any, name: str, *, most: int = 3) -> list[str]:
    """A valid command line."""
    command = leaves()[name]
    words = [*name.split(), *_arguments(draw, name, command), *_CHEAP.get(name, [])]
    for flag, value in draw(options(command, most=most)):
        words += [flag] if value is None else [flag, value]
    if draw(st.booleans()) and any("--json" in p.opts for p in command.params):
        words.append("--json")
    return words


def cheap(name: str) -> list[str]:
    """What the command is always given."""
    return list(_CHEAP.get(name, []))


def root_of(run: str) -> str:
    """Where a run of the material lies."""
    return f"stores/{run}.zarr{'.partial' if run in PARTIAL else ''}"


def world(*runs: str) -> list[tuple[Any, ...]]:
    """Steps that lay out what valid commands name: prompts, pairs, a template, a config, runs."""
    return [
        *(("copy", file, file) for file in (PROMPTS, PAIRS, TEMPLATE, "valid.yaml")),
        *(("copy", root_of(run), root_of(run)) for run in runs),
    ]
