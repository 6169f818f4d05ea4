"""The part of a report on a direction: how it was found and chosen, and what it does."""

from __future__ import annotations

import math

from refusal_nn.plots._read import confidence
from refusal_nn.report import _behaviour, _candidates, _completions
from refusal_nn.report._candidates import Chosen
from refusal_nn.report._format import listed, nats, percent, place, plural
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
    where = "the direction"
    if evaluated is not None and {"layer", "position"} <= evaluated.attrs.keys():
        where += f" from {place(evaluated.attrs['layer'], evaluated.attrs['position'])}"
    elif chosen is not None and chosen.layer is not None:
        where += f" from {chosen.place}"
    out: list[str] = []
    if chosen is not None and table is not None:
        out.append(_selection_sentence(model, chosen, table))
    if evaluated is None:
        return out
    rates = evaluated.groups["rates"]

    def refused(*asked: tuple[str, str, str]) -> list[str]:
        """Rates by condition and style, each with what it is of, as far as they are there."""
        return [
            f"{_behaviour.cell(rates, condition, style)} of {words}"
            for condition, style, words in asked
            if _behaviour.has(rates, condition, style)
        ]

    if refused(("baseline", "toxic", "harmful")):
        of = {"toxic": "harmful", "safe": "harmless", "hard": "harmless but harmful-looking"}
        unedited = refused(*(("baseline", style, words) for style, words in of.items()))
        out.append(f"On the test prompts, {model} refuses {', '.join(unedited)} prompts.")
    for condition, style, words, edit in (
        ("ablation", "toxic", "harmful prompts", f"With {where} ablated"),
        ("addition", "safe", "harmless prompts", "With it added"),
    ):
        for rate in refused((condition, style, words)):
            share = _behaviour.coherent(rates, condition, style)
            whole = (
                f" ({percent(share)} of its completions coherent)" if math.isfinite(share) else ""
            )
            out.append(f"{edit} it refuses {rate}{whole}.")
    random = refused(
        ("random_ablation", "toxic", "harmful prompts (ablated)"),
        ("random_addition", "safe", "harmless prompts (added)"),
    )
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
