"""A report's sections, from the runs of one or several studies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import xarray as xr

from refusal_nn import __version__
from refusal_nn.errors import RequestError
from refusal_nn.report import (
    _attribution,
    _behaviour,
    _candidates,
    _circuits,
    _completions,
    _patching,
    _runs,
)
from refusal_nn.report._candidates import Chosen
from refusal_nn.report._format import listed, minus, nats, plural
from refusal_nn.report._page import Block, Page, Paragraph, Section
from refusal_nn.report._sources import DIRECTION, KINDS, Source, from_results

REFERENCES = {
    "direction": "Directions: Arditi et al. 2024, arXiv:2406.11717.",
    "patch": "Patching: Heimersheim and Nanda 2024, arXiv:2404.15255; heads: arXiv:2604.04385.",
    "attribute": "Attribution: Hanna et al. 2024, arXiv:2403.17806.",
    "circuit": "Circuits: Hanna et al. 2024, arXiv:2403.17806; Mueller et al. 2025, arXiv:2504.13151.",
}
"""Where the methods of each noun come from."""


def build(runs: Sequence[Source | xr.Dataset | xr.DataTree], *, title: str | None = None) -> Page:
    """A report from runs.

    Parameters
    ----------
    runs : sequence
        Sources from :func:`read`, or results in memory. Any subset of the runs of direction, patch,
        attribute and circuit commands, of one model or several.
    title : str, optional
        Default: names the model.

    Returns
    -------
    Page
        For :func:`to_html` or :func:`to_markdown`. The same runs give the same page.

    Raises
    ------
    RequestError
        If there are no runs, or one is of a kind that reports do not know.
    """
    sources = [r if isinstance(r, Source) else from_results(r) for r in runs]
    if not sources:
        raise RequestError("a report needs at least one run.")
    sources = sorted(sources, key=lambda s: KINDS.index(s.kind))
    models = list(dict.fromkeys(s.model for s in sources))
    sections = [Section("what-was-run", "What was run", _runs.what_was_run(sources))]
    answers: list[Block] = []
    counted = Counter((s.kind, s.model) for s in sources)
    repeated = {of for of, n in counted.items() if n > 1}
    for number, group in enumerate(_studies(sources)):
        many = f" — {group[0].model}" if len(models) > 1 else ""
        answer, parts = _study(group, prefix=f"s{number + 1}-", suffix=many, repeated=repeated)
        answers += answer
        sections += parts
    if answers:
        sections.insert(0, Section("summary", "Summary", answers))
    sections.append(Section("provenance", "Provenance", _runs.provenance(sources)))
    return Page(
        title=title or f"Refusal in {listed(models)}",
        subtitle=f"{plural(len(sources), 'run')}: {listed([_runs.analysis(s) for s in sources])}",
        sections=sections,
        footer=" ".join([f"refusal_nn {__version__}.", *_references(sources)]),
    )


def _references(sources: list[Source]) -> list[str]:
    nouns = dict.fromkeys(
        "direction" if s.kind in DIRECTION else s.kind.split("-")[0] for s in sources
    )
    return [REFERENCES[noun] for noun in nouns]


def _studies(sources: list[Source]) -> list[list[Source]]:
    """Runs that belong together: joined by their inputs, else by model where only one study fits."""
    studies: list[list[Source]] = []
    for source in sources:
        open_ = [s for s in studies if source.kind not in [r.kind for r in s]]
        linked = [s for s in open_ if any(r.name in source.inputs for r in s)]
        alike = [s for s in open_ if s[0].model == source.model]
        if linked:
            linked[0].append(source)
        elif len(alike) == 1:
            alike[0].append(source)
        else:
            studies.append([source])
    return studies


def _study(
    group: list[Source], *, prefix: str, suffix: str, repeated: set[tuple[str, str]]
) -> tuple[list[Block], list[Section]]:
    """The answer and the sections of one study; kinds that a model has several of are named."""
    by_kind = {source.kind: source for source in group}
    extract, scores = by_kind.get("extract"), by_kind.get("score")
    selected, evaluated = by_kind.get("select"), by_kind.get("evaluate")
    chosen = _candidates.chosen_in(scores, selected)
    sections: list[Section] = []

    def add(anchor: str, title: str, blocks: list[Block]) -> None:
        if blocks:
            sections.append(Section(prefix + anchor, title + suffix, blocks))

    if evaluated is not None:
        add("behaviour", "Behaviour on test prompts", [
            *_behaviour.behaviour(evaluated), *_behaviour.effects(evaluated),
        ])  # fmt: skip
        add("side-effects", "Side effects", _behaviour.side_effects(evaluated))
        add("controls", "Controls", _behaviour.controls(evaluated))
        add("categories", "By category", _behaviour.categories(evaluated))
        add("scores", "Refusal scores", _behaviour.score_figure(evaluated))
    table = selected or scores
    if chosen is not None and table is not None:
        add("selection", "The selected direction", _candidates.selection(table.data, chosen))
    if scores is not None:
        add("candidates", "Candidate directions", _candidates.scoring(scores, chosen))
    if extract is not None:
        add("discovery", "Discovery", _candidates.extraction(extract))
    if evaluated is not None:
        add("completions", "Sample completions", _completions.sampled(evaluated))
        add("failures", "Where it failed", _completions.failures(evaluated))
    for kind, heading, blocks in _mechanism(by_kind):
        source = by_kind[kind]
        named = f": {source.name}" if (kind, source.model) in repeated else ""
        add(kind, heading + named, blocks)
    found, tested = by_kind.get("circuit-discover"), by_kind.get("circuit-evaluate")
    shown = tested or found
    named = shown.name if shown and (shown.kind, shown.model) in repeated else ""
    text = " ".join(
        [
            *_answer(group[0].model, evaluated, chosen, table),
            *_patching.answer(by_kind.get("patch-positions"), by_kind.get("patch-heads")),
            *_circuits.answer(found, tested, name=named),
        ]
    )
    return ([Paragraph(text, lead=True)] if text else []), sections


def _mechanism(by_kind: dict[str, Source]) -> list[tuple[str, str, list[Block]]]:
    """Sections on patching, attribution and circuits: anchor, title and blocks."""
    out: list[tuple[str, str, list[Block]]] = []

    def add(kind: str, heading: str, blocks: Callable[[Source], list[Block]]) -> None:
        if kind in by_kind:
            out.append((kind, heading, blocks(by_kind[kind])))

    add("patch-positions", "Where the decision is", _patching.positions)
    add("patch-heads", "Refusal heads", _patching.heads)
    add("attribute-nodes", "Attribution to nodes", _attribution.nodes)
    add(
        "attribute-edges",
        "Attribution to edges",
        partial(_attribution.edges, summed="attribute-nodes" not in by_kind),
    )
    add("circuit-discover", "The circuit", _circuits.discovered)
    add(
        "circuit-evaluate",
        "What the circuit does alone",
        partial(_circuits.evaluated, drawn="circuit-discover" in by_kind),
    )
    add("circuit-compare", "Circuits compared", _circuits.compared)
    return out


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
            coherent = _behaviour.coherence(rates, condition, style)
            out.append(
                f"{edit} it refuses {cell(rates, condition, style)} of {words} prompts"
                + (f" ({coherent} of its completions coherent)." if coherent else ".")
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
    confidence = 100 * float(rates.attrs.get("confidence", 0.95))
    out.append(f"Brackets: {confidence:g} % intervals, in per cent.")
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
