"""The part of a report on candidate directions: found, scored, selected."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn import plots
from refusal_nn.plots._read import marked
from refusal_nn.report._format import listed, minus, nats, place, plural
from refusal_nn.report._page import Block, Paragraph, Picture, Table
from refusal_nn.report._sources import Source

NEAR_TIES_SHOWN = 10


@dataclass(frozen=True)
class Chosen:
    """The selected candidate, from a select run or made now from a score table.

    Attributes
    ----------
    layer, position : int or None
        None when no candidate is admissible.
    near_ties : tuple of (position, layer)
        Candidates whose bypass cannot be told from the selected one's.
    why : str
        The rule's own sentence.
    n_admissible : int
    """

    layer: int | None
    position: int | None
    near_ties: tuple[tuple[int, int], ...]
    why: str
    n_admissible: int

    @property
    def place(self) -> str:
        """``layer 4, position −1``."""
        return place(self.layer or 0, self.position or 0)


def chosen_in(scores: Source | None, selected: Source | None) -> Chosen | None:
    """The selected candidate: as a select run recorded it, else by the rule on the score table."""
    if selected is not None:
        data = selected.data.transpose("position", "layer", ...)
        places = marked(data["selected"], "position", "layer")
        near = marked(data["near_tie"], "position", "layer") if "near_tie" in data else []
        position, layer = places[0] if places else (None, None)
        count = int(data["admissible"].sum()) if "admissible" in data else 0
        return Chosen(layer, position, tuple(near), str(selected.attrs.get("reason", "")), count)
    if scores is None:
        return None
    from refusal_nn.directions import select

    found = select(scores.data, **thresholds(scores))
    ties = tuple((int(t.position), int(t.layer)) for t in found.near_ties)
    return Chosen(found.layer, found.position, ties, found.why, found.n_admissible)


def thresholds(source: Source) -> dict[str, Any]:
    """The thresholds a table was scored with; the published ones where it does not say."""
    from refusal_nn.directions._thresholds import INDUCE_MIN, KL_MAX, LAYER_FRACTION

    published = {"kl_max": KL_MAX, "induce_min": INDUCE_MIN, "layer_fraction": LAYER_FRACTION}
    return {name: float(source.attrs.get(name, value)) for name, value in published.items()}


def extraction(source: Source) -> list[Block]:
    """Discovery prompts, screening and the norms of the candidates."""
    data, attrs = source.data, source.attrs
    n = data.sizes["layer"] * data.sizes["position"]
    texts = attrs.get("refusal_token_texts", [])
    blocks: list[Block] = [
        Paragraph(
            f"{plural(n, 'candidate')}: the difference of the mean activations of harmful and "
            f"harmless prompts at the input of each of {data.sizes['layer']} layers and at "
            f"{plural(data.sizes['position'], 'position')} from the end of the prompt."
            + (f" Refusal tokens: {', '.join(repr(t) for t in texts)}." if len(texts) else "")
        )
    ]
    if "kept" in data and "harm" in data.coords:
        blocks.append(_screening(data))
    if "refusal_score" in data:
        blocks.append(
            Picture(
                "discovery-scores",
                plots.score_distributions(data),
                f"Refusal score of the {plural(data.sizes['prompt'], 'discovery prompt')} on the "
                "unedited model. Each histogram counts prompts; triangles are medians.",
                "Histograms of refusal scores of discovery prompts by style.",
            )
        )
    blocks.append(
        Picture(
            "direction-norms",
            plots.direction_norms(data),
            "Norm of each candidate direction, in units of the residual stream, by the layer whose "
            "input it was taken at.",
            "Lines of direction norm by layer, one for each position.",
        )
    )
    return blocks


def scoring(source: Source, chosen: Chosen) -> list[Block]:
    """Heat maps of the three scores and the tally of what each criterion dropped."""
    data, attrs = source.data, source.attrs
    used = thresholds(source)
    n_layers = int(attrs.get("n_layers", data.sizes["layer"]))
    counts = _counts(data)
    of = f" Means over {counts}." if counts else ""
    complete = all(bool(data[name].notnull().all()) for name in ("bypass", "induce", "kl"))
    rest = "" if complete else "; what is ruled out by one is not measured on the next"
    blocks: list[Block] = [
        Picture(
            "candidate-scores",
            plots.candidate_heatmaps(data, chosen),
            f"Scores of every candidate direction.{of} Hatching: the first criterion that rules a "
            f"candidate out{rest}.",
            "Three heat maps over layer and position: bypass, induce and KL.",
        )
    ]
    if "dropped_by" in data:
        blocks.append(_tally(data["dropped_by"].values, used, n_layers))
    return blocks


def selection(source: Source, chosen: Chosen) -> list[Block]:
    """The selected candidate and those that cannot be told from it."""
    if chosen.layer is None:
        return [Paragraph(chosen.why or "No candidate is admissible.")]
    places = [(int(chosen.position or 0), chosen.layer), *chosen.near_ties]
    rows = []
    for i, (position, layer) in enumerate(places[: 1 + NEAR_TIES_SHOWN]):
        at = source.data.sel(position=position, layer=layer)
        scores = [nats(float(at[name])) for name in ("bypass", "induce", "kl")]
        rows.append(["selected" if i == 0 else "near tie", str(layer), minus(position), *scores])
    hidden = len(places) - len(rows)
    more = f" {plural(hidden, 'more near tie')} not shown." if hidden else ""
    ties = (
        "Near ties are admissible candidates whose bypass cannot be told from the selected one's on "
        "these prompts: the choice among them is the rule's, not the data's."
        if chosen.near_ties
        else "No other admissible candidate comes near it."
    )
    caption = f"The selected direction, of {plural(chosen.n_admissible, 'admissible candidate')}. "
    columns = ["", "layer", "position", "bypass (nats)", "induce (nats)", "KL (nats)"]
    return [Table.of(columns, rows, caption + ties + more, marked=(0,))]


def _screening(data: xr.Dataset) -> Table:
    rows = []
    for harm in dict.fromkeys(str(h) for h in data["harm"].values):
        mask = data["harm"].values == harm
        kept = int(data["kept"].values[mask].sum())
        rows.append([harm, f"{int(mask.sum()):,}", f"{kept:,}"])
    return Table.of(
        ["discovery prompts", "given", "kept"],
        rows,
        "Kept: the unedited model treats the prompt as its label says (refusal score above 0 for "
        "harmful prompts, below 0 for harmless ones).",
    )


def _counts(data: xr.Dataset) -> str:
    """How many prompts stand behind the means of the three scores."""
    if "kept" not in data or "harm" not in data.coords:
        return ""
    kept = data["kept"].values.astype(bool)
    harms = ("harmful", "harmless")
    counts = {harm: int((kept & (data["harm"].values == harm)).sum()) for harm in harms}
    return listed([plural(n, f"{harm} prompt") for harm, n in counts.items()])


def _tally(dropped: np.ndarray, used: dict[str, float], n_layers: int) -> Table:
    counts = Counter(str(reason) for reason in dropped.ravel())
    last = int(used["layer_fraction"] * n_layers)
    meaning = {
        "late layer": f"layer {last} or later (int({used['layer_fraction']:g} × {n_layers} layers))",
        "induce": f"induce below {used['induce_min']:g} nats",
        "kl": f"KL above {used['kl_max']:g} nats",
    }
    rows = [[meaning[k], f"{counts[k]:,}"] for k in meaning]
    rows += [[k, f"{counts[k]:,}"] for k in sorted(set(counts) - set(meaning) - {""})]
    rows.append(["admissible", f"{counts['']:,}"])
    return Table.of(
        ["criterion", "candidates"],
        rows,
        f"What became of the {plural(int(dropped.size), 'candidate')}, each counted at the first "
        "criterion that rules it out.",
        marked=(len(rows) - 1,),
    )
