"""The part of a report on a direction: how it was found and chosen, and what it does."""

from __future__ import annotations

import math

from refusal_nn.plots._read import confidence
from refusal_nn.report import _behaviour, _candidates, _completions
from refusal_nn.report._candidates import Chosen
from refusal_nn.report._format import listed, minus, nats, percent, plural
from refusal_nn.report._page import Part, section
from refusal_nn.report._sources import Source, Study

REFERENCE = "Directions: Arditi et al. 2024, arXiv:2406.11717."


def part(study: Study) -> Part:
    """What the runs of a direction study say together."""
    extract, scores, selected, evaluated = (
        study.get(f"direction-{verb}") for verb in ("extract", "score", "select", "evaluate")
    )
    evaluated = evaluated or study.get("responses-evaluate")
    chosen = _candidates.chosen_in(scores, selected)
    table = selected or scores
    sections = [
        *section("behaviour", "Behaviour on test prompts", _behaviour.behaviour, evaluated),
        *section("side-effects", "Side effects", _behaviour.side_effects, evaluated),
        *section("controls", "Controls", _behaviour.controls, evaluated),
        *section("categories", "By category", _behaviour.categories, evaluated),
        *section("scores", "Refusal scores", _behaviour.score_figure, evaluated),
        *section("selection", "The selected direction", _candidates.selection, table, chosen),
        *section("candidates", "Candidate directions", _candidates.scoring, scores, chosen),
        *section("discovery", "Discovery", _candidates.extraction, extract),
        *section("completions", "Sample completions", _completions.sampled, evaluated),
        *section("failures", "Where it failed", _completions.failures, evaluated),
    ]
    answer = _answer(study.sources[0].model, evaluated, chosen, table)
    return Part(sections, answer, REFERENCE)


def _answer(
    model: str, evaluated: Source | None, chosen: Chosen | None, table: Source | None
) -> list[str]:
    """The result in a few sentences, every rate with its interval."""
    out: list[str] = []
    where = "the direction"
    if evaluated is not None and "layer" in evaluated.attrs and "position" in evaluated.attrs:
        place = (
            f"layer {evaluated.attrs['layer']}, position {minus(int(evaluated.attrs['position']))}"
        )
        where = f"the direction from {place}"
    elif chosen is not None and chosen.layer is not None:
        where = f"the direction from {chosen.place}"
    if chosen is not None and table is not None:
        out.append(_selection_sentence(model, chosen, table))
    if evaluated is None:
        return out
    rates = evaluated.groups["rates"]
    cell, has = _behaviour.cell, _behaviour.has
    if has(rates, "baseline", "toxic"):
        sentence = (
            f"On the test prompts, {model} refuses {cell(rates, 'baseline', 'toxic')} of harmful"
        )
        for style, words in (("safe", "harmless"), ("hard", "harmless but harmful-looking")):
            if has(rates, "baseline", style):
                sentence += f", {cell(rates, 'baseline', style)} of {words}"
        out.append(f"{sentence} prompts.")
    for condition, style, words, edit in (
        ("ablation", "toxic", "harmful", f"With {where} ablated"),
        ("addition", "safe", "harmless", "With it added"),
    ):
        if has(rates, condition, style):
            share = _behaviour.coherent(rates, condition, style)
            out.append(
                f"{edit} it refuses {cell(rates, condition, style)} of {words} prompts"
                + (
                    f" ({percent(share)} of its completions coherent)."
                    if math.isfinite(share)
                    else "."
                )
            )
    random = [
        f"{cell(rates, condition, style)} of {words} prompts ({verb})"
        for condition, style, verb, words in (
            ("random_ablation", "toxic", "ablated", "harmful"),
            ("random_addition", "safe", "added", "harmless"),
        )
        if has(rates, condition, style)
    ]
    if random:
        out.append(f"With random directions of equal norm it refuses {listed(random)}.")
    out.append(f"Brackets: {confidence(rates.attrs)} intervals, in per cent.")
    return out


def _selection_sentence(model: str, chosen: Chosen, table: Source) -> str:
    if chosen.layer is None:
        return f"{model} has no refusal direction that the rule admits. {chosen.why}".strip()
    at = table.data.sel(layer=chosen.layer, position=chosen.position)
    total = table.data.sizes["layer"] * table.data.sizes["position"]
    ties = len(chosen.near_ties)
    near = f" ({plural(ties, 'near tie')})" if ties else ""
    if chosen.n_admissible == 1:
        found = f"Of {total:,} candidates only 1 is admissible, so there is nothing to rank: it is"
    else:
        found = f"Of {total:,} candidates {chosen.n_admissible:,} are admissible; the rule selects"
    return (
        f"{found} {chosen.place}{near}: bypass {nats(float(at['bypass']))}, induce "
        f"{nats(float(at['induce']))}, KL {nats(float(at['kl']))} nats."
    )
