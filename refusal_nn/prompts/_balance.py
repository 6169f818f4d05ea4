"""Balance harmful against harmless prompts, and weigh categories of unequal size."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from refusal_nn.errors import PromptError
from refusal_nn.prompts._labels import listed
from refusal_nn.prompts._prompts import Prompts

if TYPE_CHECKING:
    import xarray as xr


def balance(
    prompts: Prompts,
    *,
    strategy: Literal["use_all", "equalize"] = "use_all",
    include_hard: bool = False,
    seed: int = 0,
) -> Prompts:
    """As many harmless as toxic prompts in every category, within each split.

    Parameters
    ----------
    prompts : Prompts
        Every category needs toxic prompts.
    strategy : {"use_all", "equalize"}
        ``use_all`` keeps all toxic prompts of a category and draws as many harmless ones;
        ``equalize`` first cuts every category to the toxic count of the smallest one of the split.
        Where a category has fewer harmless prompts than toxic ones, it keeps them all.
    include_hard : bool
        Draw harmless prompts half from the hard and half from the safe ones, as far as both reach;
        otherwise from the safe ones alone.
    seed : int
        Of the draw. The same seed gives the same prompts.

    Returns
    -------
    Prompts
        In the order of the set.

    Raises
    ------
    PromptError
        If a category has no toxic prompts (with ``equalize``: in one of the splits), or the
        strategy is unknown.
    """
    if strategy not in ("use_all", "equalize"):
        raise PromptError(f"strategy is 'use_all' or 'equalize', not {strategy!r}.")
    _need_toxic(prompts)
    rng = np.random.default_rng(seed)
    kept: list[NDArray[np.intp]] = []
    for split in prompts.splits:
        numbers: dict[tuple[str, str], list[int]] = {}
        for i in np.flatnonzero(prompts.split == split):
            numbers.setdefault((prompts.category[i], prompts.style[i]), []).append(int(i))
        categories = sorted(prompts.categories)
        cells = {
            (category, style): np.array(numbers.get((category, style), []), dtype=np.intp)
            for category in categories
            for style in ("toxic", "hard", "safe")
        }
        toxic = {c: len(cells[c, "toxic"]) for c in categories}
        if strategy == "equalize":
            if without := [c for c, n in toxic.items() if n == 0]:
                raise PromptError(
                    f"{prompts.name}, split {split}: {listed(without)} have no toxic prompts, "
                    "so all categories would be cut to none; select the other categories first, or "
                    "use 'use_all'."
                )
            toxic = dict.fromkeys(toxic, min(toxic.values()))
        for category, n in toxic.items():
            hard = 0
            if include_hard:
                # half each; what one side lacks the other makes up for
                short_of_safe = n - len(cells[category, "safe"])
                hard = min(len(cells[category, "hard"]), max(n // 2, short_of_safe))
            kept += [
                _draw(rng, cells[category, "toxic"], n),
                _draw(rng, cells[category, "hard"], hard),
                _draw(rng, cells[category, "safe"], n - hard),
            ]
    rows = np.sort(np.concatenate(kept)) if kept else np.array([], dtype=np.intp)
    return prompts[rows]


def category_weights(prompts: Prompts) -> xr.DataArray:
    """Weights that make categories count alike: inverse to their number of toxic prompts.

    ``w_c`` is proportional to ``1 / n_c``, with ``n_c`` the toxic prompts of the category.

    Returns
    -------
    xarray.DataArray
        ``category_weight`` over ``category``, summing to 1.

    Raises
    ------
    PromptError
        If a category has no toxic prompts, which leaves its weight undefined.
    """
    import xarray as xr

    counts = _need_toxic(prompts)
    weights = 1 / np.array([counts[c] for c in prompts.categories], dtype=float)
    return xr.DataArray(
        weights / weights.sum(),
        dims="category",
        coords={"category": np.array(prompts.categories, dtype=object)},
        name="category_weight",
    )


def _need_toxic(prompts: Prompts) -> Counter[str]:
    counts = Counter(prompts.toxic.category)
    if without := [c for c in prompts.categories if not counts[c]]:
        raise PromptError(
            f"{prompts.name} has no toxic prompts in {listed(without)}; select the other "
            "categories first."
        )
    return counts


def _draw(rng: np.random.Generator, rows: NDArray[np.intp], n: int) -> NDArray[np.intp]:
    return rows if n >= len(rows) else rng.choice(rows, size=max(n, 0), replace=False)
