"""Results as figures and pages read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.errors import RequestError


def labels(data: xr.Dataset | xr.DataArray, name: str) -> list[str]:
    """A coordinate as strings."""
    return [str(v) for v in np.asarray(data[name].values)]


def bounds(data: xr.Dataset, name: str) -> tuple[float, float, float]:
    """A single value and the ends of its interval."""
    value, low, high = (float(data[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return value, low, high


def marked(mask: xr.DataArray, first: str, second: str) -> list[tuple[int, int]]:
    """The true cells of a table by its two coordinates, in the order of the first."""
    cells = mask.stack(cell=(first, second))
    return [(int(a), int(b)) for a, b in cells["cell"].values[cells.values.astype(bool)]]


def span(counts: np.ndarray, between: str = "–") -> str:
    """The smallest and the largest of some counts, or the one that all of them are."""
    low, high = int(np.min(counts)), int(np.max(counts))
    return f"{low:,}" if low == high else f"{low:,}{between}{high:,}"


def confidence(attrs: Mapping[Any, Any]) -> str:
    """``95 %``, as results say of their intervals."""
    return f"{100 * float(attrs.get('confidence', 0.95)):g} %"


def require(
    results: xr.Dataset, name: str, dims: Sequence[str], give: str, *, bounded: bool = False
) -> xr.DataArray:
    """A variable over dims, in their order; the ends of its interval must be there if ``bounded``.

    Raises
    ------
    RequestError
        If one is missing or has other dims.
    """
    names = [name, f"{name}_low", f"{name}_high"] if bounded else [name]
    if any(n not in results or set(results[n].dims) != set(dims) for n in names):
        held = ", ".join(f"{v}{results[v].dims}" for v in results) or "nothing"
        raise RequestError(
            f"the figure needs {name}{' with _low and _high' if bounded else ''} over "
            f"({', '.join(dims)}), but the results hold {held}; give {give}."
        )
    return results[name].transpose(*dims)
