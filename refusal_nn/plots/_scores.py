"""How refusal scores are distributed over prompts, condition by condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError
from refusal_nn.plots._read import labels
from refusal_nn.plots._style import (
    LINE,
    MUTED,
    OTHER_COLOURS,
    STYLE_COLOURS,
    STYLE_LINES,
    STYLE_NAMES,
    fitted,
    new_figure,
    readable,
    style,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_BINS = 48


def score_distributions(results: xr.Dataset) -> Figure:
    """Histograms of the refusal score by style of prompt, one row a condition.

    Parameters
    ----------
    results : xarray.Dataset
        ``refusal_score`` ``([intervention,] prompt)`` in nats, with coordinate ``style``
        ``(prompt)``.

    Returns
    -------
    matplotlib.figure.Figure
        Counts on bins shared by all rows, each row scaled to its own tallest bin; the triangle is
        the median.

    Raises
    ------
    RequestError
        If there are no scores or no styles.
    """
    if "refusal_score" not in results or "style" not in results.coords:
        raise RequestError(
            "score distributions need 'refusal_score' with a coordinate 'style'; give an evaluation "
            "made with refusal tokens, or a run of direction extract or score."
        )
    scores = results["refusal_score"]
    if "intervention" not in scores.dims:
        scores = scores.expand_dims(intervention=["unedited"])
    scores = scores.transpose("intervention", "prompt")
    finite = scores.values[np.isfinite(scores.values)]
    if not len(finite):
        raise RequestError("score distributions need at least one finite refusal_score.")
    margin = 0.02 * float(np.ptp(finite)) + 0.1
    edges = np.linspace(finite.min() - margin, finite.max() + margin, N_BINS + 1)
    styles = list(dict.fromkeys(str(s) for s in scores["style"].values))
    names = labels(scores, "intervention")
    with style():
        figure = new_figure(height=0.85 + 0.52 * len(names))
        axes = np.atleast_1d(figure.subplots(len(names), 1, sharex=True))
        for ax, name in zip(axes, names, strict=True):
            row = scores.sel(intervention=name)
            top = 1
            for i, one in enumerate(styles):
                values = row.values[row["style"].values == one]
                values = values[np.isfinite(values)]
                counts, _ = np.histogram(values, edges)
                top = max(top, int(counts.max()))
                colour = STYLE_COLOURS.get(one, OTHER_COLOURS[i % len(OTHER_COLOURS)])
                label = (
                    f"{STYLE_NAMES.get(one, fitted(one))}, n = {len(values)}"
                    if ax is axes[0]
                    else None
                )
                heights = np.where(counts > 0, counts, np.nan)  # no outline along empty bins
                ax.stairs(heights, edges, fill=True, color=colour, alpha=0.18)
                ax.stairs(
                    heights, edges, color=colour, linewidth=1.2, label=label,
                    linestyle=STYLE_LINES.get(one, "-"),
                )  # fmt: skip
                if len(values):
                    ax.plot(
                        np.median(values), 0, marker="^", markersize=5.5, color=colour,
                        markeredgecolor="white", markeredgewidth=0.5, zorder=5, clip_on=False,
                    )  # fmt: skip
            ax.set_ylim(0, 1.12 * top)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            ax.spines["bottom"].set_color(LINE)
            ax.tick_params(axis="x", color=LINE, length=0 if ax is not axes[-1] else 3)
            ax.axvline(0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
            ax.set_ylabel(fitted(readable(name)), rotation=0, ha="right", va="center", labelpad=4)
        axes[-1].set_xlabel(
            "refusal score (log-odds that the answer starts with a refusal token, nats)"
        )
        figure.legend(loc="outside lower center", ncols=len(styles), handlelength=1.6)
    return figure
