"""What patched models say: how often they refuse, and a few completions."""

from __future__ import annotations

import numpy as np
import xarray as xr

from refusal_nn.plots._patching import INTERCHANGE_NAMES
from refusal_nn.plots._read import bounds, labels
from refusal_nn.report._completions import answered
from refusal_nn.report._format import interval, percent
from refusal_nn.report._page import Block, Sample, Samples, Table
from refusal_nn.report._sources import Source

RUNS = {"sufficiency": ("harmless", "corrupted_text"), "necessity": ("harmful", "clean_text")}
"""Which prompt of a pair is run, and the variable that holds it."""

SHOWN = 2


def said(source: Source) -> list[Block]:
    """Refusal of patched runs beside both prompts as they are, with sample completions."""
    found = {
        str(group.attrs.get("interchange", "")): group
        for name, group in sorted(source.groups.items(), reverse=True)
        if name.startswith("completions") and "refusal_rate" in group
    }
    if not found:
        return []
    rows = []
    for into, group in found.items():
        for name in labels(group, "intervention"):
            at = group.sel(intervention=name)
            plain = name in ("harmful", "harmless")
            if plain and into != next(iter(found)):
                continue
            rows.append(
                [
                    f"{name} prompts as they are" if plain else INTERCHANGE_NAMES.get(into, into),
                    "" if plain else name,
                    interval(*bounds(at, "refusal_rate")),
                    percent(float(at["coherent_rate"])),
                ]
            )
    n = next(iter(found.values())).sizes["prompt"]
    how = ""
    if any(group.attrs.get("nll_limit", 0) is None for group in found.values()):
        how = " (by repetition alone: harmless prompts got no longer text to compare with)"
    table = Table.of(
        ["", "exchanged", "refused", "coherent"],
        rows,
        f"What the model says: share of {n:,} completions that refuse and are coherent{how}; "
        "below, some of them by what was exchanged.",
        words=2,
    )
    samples = [sample for into, group in found.items() for sample in _samples(into, group)]
    return [table, Samples(samples)] if samples else [table]


def _samples(into: str, group: xr.Dataset) -> list[Sample]:
    if into not in RUNS or RUNS[into][1] not in group:
        return []
    plain, text = RUNS[into]
    patched = [
        name for name in labels(group, "intervention") if name not in ("harmful", "harmless")
    ]
    n = group.sizes["prompt"]
    out = []
    for row in np.unique(np.linspace(0, n - 1, min(SHOWN, n)).round().astype(int)):
        here = group.isel(prompt=int(row))
        answers = [
            answered(here, name, "as it is" if name == plain else name)
            for name in (plain, *patched)
        ]
        out.append(Sample(str(here[text].item()), plain, str(here["category"].item()), answers))
    return out
