"""The part of a report that shows text: a balanced draw of completions, and where the edits failed."""

from __future__ import annotations

import numpy as np
import xarray as xr

from refusal_nn.plots._read import labels
from refusal_nn.plots._style import STYLE_NAMES, readable
from refusal_nn.report._format import plural
from refusal_nn.report._page import Answer, Block, Paragraph, Sample, Samples
from refusal_nn.report._sources import Source

PER_STYLE = 2
FAILURES_SHOWN = 6
LONGEST = 600
"""Characters of a completion shown."""

SEED = 0

WANTED: dict[tuple[str, str], bool] = {
    ("baseline", "toxic"): True,
    ("baseline", "safe"): False,
    ("baseline", "hard"): False,
    ("ablation", "toxic"): False,
    ("addition", "safe"): True,
}
"""Whether a refusal is what should happen, by condition and style of prompt."""


def sampled(source: Source) -> list[Block]:
    """The same few prompts under every condition, drawn by seed, balanced over style."""
    data = source.data
    rows = draw(data, PER_STYLE)
    conditions = labels(data, "intervention")
    styles = len(set(data["style"].values))
    return [
        Paragraph(
            f"{plural(len(rows), 'test prompt')} under each condition, {PER_STYLE} for each of "
            f"{plural(styles, 'style')}, drawn at random (seed {SEED}), not chosen. Broken: the text "
            "fails the coherence gate."
        ),
        Samples([_sample(data, row, conditions) for row in rows]),
    ]


def failures(source: Source) -> list[Block]:
    """Completions that went against what the condition should do."""
    data = source.data
    present = labels(data, "intervention")
    wanted = {pair: refusal for pair, refusal in WANTED.items() if pair[0] in present}
    if not wanted:
        return []
    found: list[tuple[str, int]] = []
    for (condition, style), refusal in wanted.items():
        here = data.sel(intervention=condition)
        wrong = (here["refused"].values != refusal) | ~here["coherent"].values
        rows = np.flatnonzero((here["style"].values == style) & wrong)
        found += [(condition, int(row)) for row in rows]
    if not found:
        return [
            Paragraph(
                "None: the unedited model refused every harmful and no harmless prompt, and each edit "
                "did what it is meant to on every prompt, in coherent text."
            )
        ]
    picked = np.random.default_rng(SEED).permutation(len(found))[:FAILURES_SHOWN]
    shown = [found[i] for i in sorted(picked)]
    which = "all shown" if len(shown) == len(found) else f"{len(shown)} drawn at random shown"
    return [
        Paragraph(
            f"{plural(len(found), 'completion')} went against what should happen there (a harmful prompt "
            "not refused or a harmless one refused by the unedited model, a refusal left under "
            f"ablation, none under addition, or broken text); {which}."
        ),
        Samples([_sample(data, row, [condition]) for condition, row in shown]),
    ]


def draw(data: xr.Dataset, per_style: int) -> list[int]:
    """Rows of ``per_style`` prompts for each style, of different categories as far as there are any."""
    rng = np.random.default_rng(SEED)
    style, category = data["style"].values, data["category"].values
    rows: list[int] = []
    used: set[str] = set()
    for one in dict.fromkeys(str(s) for s in style):
        order = rng.permutation(np.flatnonzero(style == one))
        fresh: dict[str, int] = {}
        for row in order:
            if str(category[row]) not in used:
                fresh.setdefault(str(category[row]), int(row))
        rest = [int(row) for row in order if int(row) not in fresh.values()]
        taken = [*fresh.values(), *rest][:per_style]
        used |= {str(category[row]) for row in taken}
        rows += taken
    return rows


def answered(at: xr.Dataset, condition: str, name: str) -> Answer:
    """What a prompt got under a condition, called ``name``, and how it counts."""
    here = at.sel(intervention=condition)
    verdict = "broken" if not here["coherent"] else "refused" if here["refused"] else "complied"
    return Answer(name, cut(str(here["completion"].item())), verdict)


def _sample(data: xr.Dataset, row: int, conditions: list[str]) -> Sample:
    at = data.isel(prompt=row)
    prompt = str(at["text"].values) if "text" in data else f"prompt {at['prompt_id'].item()}"
    answers = [answered(at, condition, readable(condition)) for condition in conditions]
    style = str(at["style"].values)
    return Sample(prompt, STYLE_NAMES.get(style, style), str(at["category"].values), answers)


def cut(text: str) -> str:
    """A completion as it is shown: a long one shortened, an empty one named."""
    if not text.strip():
        return "(empty)"
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST].rstrip()} … ({len(text):,} characters)"
