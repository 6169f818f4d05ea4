"""Results as figures and pages read them."""

from __future__ import annotations

from collections.abc import Sequence

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


def span(counts: np.ndarray, between: str = "–") -> str:
    """The smallest and the largest of some counts, or the one that all of them are."""
    low, high = int(np.min(counts)), int(np.max(counts))
    return f"{low:,}" if low == high else f"{low:,}{between}{high:,}"


def confidence(attrs: dict) -> str:
    """``95 %``, as results say of their intervals."""
    return f"{100 * float(attrs.get('confidence', 0.95)):g} %"


def require(results: xr.Dataset, names: Sequence[str], dims: Sequence[str], give: str) -> None:
    """Insist on variables over dims, the first of them named in the message.

    Raises
    ------
    RequestError
        If one is missing or has other dims.
    """
    if any(n not in results or set(results[n].dims) != set(dims) for n in names):
        held = ", ".join(f"{v}{results[v].dims}" for v in results) or "nothing"
        raise RequestError(
            f"the figure needs {' with '.join(names)} over ({', '.join(dims)}), but the results hold "
            f"{held}; give {give}."
        )
