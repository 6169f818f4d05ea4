"""Split analysis: how many prompts of which kind, and what is wrong with the mixture."""

from __future__ import annotations

from collections import Counter
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from refusal_nn.errors import PromptError
from refusal_nn.prompts._disjoint import duplicates, overlaps
from refusal_nn.prompts._labels import SPLITS, VOCABULARY, listed, quote
from refusal_nn.prompts._prompts import Prompts

if TYPE_CHECKING:
    import xarray as xr

_STYLES = VOCABULARY["style"]


def stats(
    prompts: Prompts,
    *,
    toxic_min: float = 10.0,
    toxic_max: float = 90.0,
    width_max: float = 0.5,
    confidence: float = 0.95,
) -> xr.Dataset:
    """Counts and ratios by category, and warnings about the mixture.

    Parameters
    ----------
    prompts : Prompts
        Best loaded with ``check=False``, so that duplicates and overlaps are reported, not refused.
    toxic_min, toxic_max : float
        Percentages of toxic prompts outside of which a warning is given.
    width_max : float
        Widest acceptable interval of a refusal rate within one category and style of the test
        split, in (0, 1]. The default asks for 12 prompts.
    confidence : float
        Of that interval.

    Returns
    -------
    xarray.Dataset
        ``prompt_count`` over ``(category, style, split)``; ``category_count``, ``safe_ratio``
        (hard and safe over all) and ``toxic_ratio`` over ``category``; ``style_count`` over
        ``style``; scalars ``overall_safe_ratio``, ``overall_toxic_ratio`` and ``toxic_to_safe``
        (NaN without harmless prompts); ``rate_width`` over ``(category, style, split)``: width of
        the Wilson interval of a rate of one half with that many prompts. Ratios lie in 0 to 1.
        ``attrs["warnings"]`` is a list of sentences, empty if nothing is wrong.

    Raises
    ------
    PromptError
        If the set is empty.
    """
    if not len(prompts):
        raise PromptError(f"{prompts.name} is empty; there is nothing to count.")
    import xarray as xr

    categories = prompts.categories
    cells = Counter(zip(prompts.category, prompts.style, prompts.split, strict=True))
    counts = np.array(
        [[[cells[c, s, p] for p in SPLITS] for s in _STYLES] for c in categories], dtype=np.int64
    )
    by_style = counts.sum(axis=2)
    total = by_style.sum(axis=1)
    toxic = by_style[:, _STYLES.index("toxic")]
    n_toxic, n_all = int(toxic.sum()), int(total.sum())
    out = xr.Dataset(
        {
            "prompt_count": (("category", "style", "split"), counts),
            "category_count": ("category", total),
            "safe_ratio": ("category", 1 - toxic / total),
            "toxic_ratio": ("category", toxic / total),
            "style_count": ("style", by_style.sum(axis=0)),
            "overall_safe_ratio": 1 - n_toxic / n_all,
            "overall_toxic_ratio": n_toxic / n_all,
            "toxic_to_safe": n_toxic / (n_all - n_toxic) if n_toxic < n_all else np.nan,
            "rate_width": (("category", "style", "split"), wilson_width(counts, confidence)),
        },
        coords={
            "category": np.array(categories, dtype=object),
            "style": np.array(_STYLES, dtype=object),
            "split": np.array(SPLITS, dtype=object),
        },
        attrs={"prompts": prompts.name, "prompts_hash": prompts.hash, "confidence": confidence},
    )
    _declare()
    from refusal_nn.store.variables import annotate

    return annotate(out).assign_attrs(
        warnings=_warnings(prompts, out, toxic_min, toxic_max, width_max)
    )


def wilson_width(n: ArrayLike, confidence: float = 0.95) -> NDArray[np.float64]:
    """Width of the Wilson interval of a rate of one half, its widest, for ``n`` prompts.

    1 for ``n = 0``: nothing is known.
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    out: NDArray[np.float64] = z / np.sqrt(np.asarray(n, dtype=float) + z**2)
    return out


def _warnings(
    prompts: Prompts, table: xr.Dataset, toxic_min: float, toxic_max: float, width_max: float
) -> list[str]:
    found = []
    for harm in VOCABULARY["harm"]:
        if harm not in prompts.harm:
            found.append(f"There are no {harm} prompts: directions need both classes.")
    percent = 100 * float(table["overall_toxic_ratio"])
    if not toxic_min <= percent <= toxic_max:
        found.append(
            f"{percent:.1f} % of all prompts are toxic; between {toxic_min:g} and {toxic_max:g} % "
            "is advised."
        )
    ratio = dict(zip(prompts.categories, 100 * table["toxic_ratio"].values, strict=True))
    without = [c for c, value in ratio.items() if value == 0]
    if without and "harmful" in prompts.harm:
        found.append(f"No toxic prompts in these categories: {listed(without)}.")
    uneven = [
        f"{c} {value:.1f} %"
        for c, value in ratio.items()
        if value > 0 and not toxic_min <= value <= toxic_max
    ]
    if uneven and len(ratio) > 1:
        found.append(
            f"Toxic share of a category outside {toxic_min:g} to {toxic_max:g} %: {listed(uneven)}."
        )
    if absent := [s for s in SPLITS if s not in prompts.splits]:
        found.append(f"No prompts in split {', '.join(absent)}.")
    found += _small(prompts, table, width_max)
    if again := duplicates(prompts):
        first = quote(prompts.text[again[0][1]])
        found.append(f"Prompts that repeat an earlier one: {len(again)}, such as {first}.")
    found += [f"Overlap: {o}." for o in overlaps(prompts)]
    return found


def _small(prompts: Prompts, table: xr.Dataset, width_max: float) -> list[str]:
    """Cells of the test split too small to give a rate with a useful interval."""
    test = table.sel(split="test")
    counts, widths = test["prompt_count"].values, test["rate_width"].values
    categories = prompts.categories
    small = [
        f"{categories[c]} {_STYLES[s]} n={counts[c, s]} ({widths[c, s]:.2f})"
        for c, s in np.argwhere((counts > 0) & (widths > width_max))
    ]
    if not small:
        return []
    shown = ", ".join(small[:5]) + (f" and {len(small) - 5} more" if len(small) > 5 else "")
    return [
        f"Test classes so small that the interval of a rate may be wider than {width_max:g}: "
        f"{shown}."
    ]


def _declare() -> None:
    from refusal_nn.store.variables import Spec, register

    cell = ("category", "style", "split")
    register(
        Spec("prompt_count", cell, "int", "count", "Prompts of a category, style and split"),
        Spec("category_count", ("category",), "int", "count", "Prompts of a category"),
        Spec("style_count", ("style",), "int", "count", "Prompts of a style"),
        Spec("safe_ratio", ("category",), "float", "0 to 1", "Share of hard and safe prompts"),
        Spec("toxic_ratio", ("category",), "float", "0 to 1", "Share of toxic prompts"),
        Spec("overall_safe_ratio", (), "float", "0 to 1", "Share of hard and safe prompts"),
        Spec("overall_toxic_ratio", (), "float", "0 to 1", "Share of toxic prompts"),
        Spec("toxic_to_safe", (), "float", "ratio", "Toxic prompts for each harmless one"),
        Spec(
            "rate_width",
            cell,
            "float",
            "0 to 1",
            "Width of the Wilson interval of a rate of one half with this many prompts; higher = "
            "less is known",
        ),
    )
