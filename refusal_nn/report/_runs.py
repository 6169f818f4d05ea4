"""The part of a report on the runs themselves: what was run on what, and where it came from."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from refusal_nn.plots._read import labels
from refusal_nn.report._format import listed
from refusal_nn.report._page import Block, Code, Paragraph, Table
from refusal_nn.report._sources import Source


def what_was_run(sources: list[Source]) -> list[Block]:
    """Every run with its model and prompts, the overlap of prompts, and the commands."""
    rows = []
    for source in sources:
        attrs = source.attrs
        n = source.data.sizes.get("prompt", attrs.get("n_test_pairs"))
        rows.append(
            [
                source.kind,
                source.model,
                str(attrs.get("dtype", "–")),
                str(attrs.get("backend", "–")),
                _prompts_of(attrs),
                "–" if n is None else f"{n:,}",
                _seconds(attrs.get("wall_time")),
            ]
        )
    blocks: list[Block] = [
        Table.of(
            ["analysis", "model", "dtype", "backend", "prompts", "n", "took"],
            rows,
            _overlap(sources),
            words=5,
        )
    ]
    commands = list(dict.fromkeys(str(s.attrs["command"]) for s in sources if "command" in s.attrs))
    if commands:
        blocks.append(Code(commands))
    return blocks


def _prompts_of(attrs: dict[str, Any]) -> str:
    """Name of the prompts or pairs of a run."""
    options = attrs.get("options")
    for place in (options if isinstance(options, dict) else {}, attrs):
        for key in ("prompts", "pairs"):
            if found := place.get(key):
                return ", ".join(map(str, found)) if isinstance(found, list | tuple) else str(found)
    return "–"


def _overlap(sources: list[Source]) -> str:
    """Whether discovery, selection and test prompts are disjoint, as found in these very runs."""
    roles = {
        "direction-extract": "discovery",
        "direction-score": "selection",
        "direction-evaluate": "test",
        "attribute-edges": "attribution",
        "circuit-evaluate": "circuit test",
    }
    held = [s for s in sources if s.kind in roles and "prompt_id" in s.data.coords]
    pairs = [
        (a, b)
        for a, b in combinations(held, 2)
        # a direction and a circuit may well be of the same prompts
        if a.kind != b.kind and a.kind.startswith("direction-") == b.kind.startswith("direction-")
    ]
    if not pairs:
        return ""
    found = []
    for first, second in pairs:
        for label, word in (("prompt_id", "prompts"), ("family", "families")):
            both = [set(labels(s.data, label)) for s in (first, second) if label in s.data.coords]
            if len(both) == 2 and (shared := both[0] & both[1]):
                names = f"{roles[first.kind]} and {roles[second.kind]}"
                found.append(f"{names} share {len(shared):,} {word}")
    if found:
        return f"Beware: {'; '.join(found)}, so the test is not on new prompts."
    kinds = listed([roles[k] for k in roles if k in {s.kind for pair in pairs for s in pair}])
    return f"Checked here: {kinds} prompts share no prompt and no family."


def provenance(sources: list[Source]) -> list[Block]:
    """Where every run came from, and the versions it was made with."""
    blocks: list[Block] = [
        Paragraph(
            "A run with these hashes holds exactly the numbers shown here; refusal-nn runs verify "
            "recomputes them."
        )
    ]
    for source in sources:
        attrs = source.attrs
        facts = {
            "run": source.name,
            "hash of its manifest": source.hash or "none: not a run on disk",
            "made": attrs.get("created"),
            "revision of the model": attrs.get("revision"),
            "hash of its prompts": attrs.get("prompts_hash"),
            "seed": attrs.get("seed"),
            "made from": ", ".join(source.inputs),
        }
        rows = [[k, str(v)] for k, v in facts.items() if v not in (None, "")]
        blocks.append(Table([source.kind, ""], rows))
    seen: list[Any] = []
    for source in sources:
        versions = source.attrs.get("versions")
        if isinstance(versions, dict) and versions not in seen:
            seen.append(versions)
    blocks += [
        Paragraph("Versions: " + ", ".join(f"{k} {v}" for k, v in v.items()) + ".") for v in seen
    ]
    return blocks


def _seconds(value: Any) -> str:
    if not isinstance(value, int | float):
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
