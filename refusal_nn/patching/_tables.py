"""What the search for refusal heads found, as a labelled table."""

from __future__ import annotations

import numpy as np
import xarray as xr

from refusal_nn.patching._roles import bands, roles
from refusal_nn.patching._sets import Head, laid_out


def head_grid(
    found: dict[Head, str],
    tower: np.ndarray,
    table: xr.Dataset,
    joint: xr.Dataset,
    frequency: np.ndarray,
    direct: np.ndarray,
) -> xr.Dataset:
    """The root of the result: every head over ``(layer, head)``, and what they do together.

    Its attrs are those of ``table``: the interval and the test.

    Parameters
    ----------
    found : dict
        Refusal heads and how they were found.
    tower : array, ``[src, dst]``
        Their cascade.
    table : xarray.Dataset
        Of single heads on test pairs.
    joint : xarray.Dataset
        From :func:`refusal_nn.patching._confirm.joint_recovery`.
    frequency : array, ``[layer, head]``
    direct : array, ``[pair, layer, head]``
    """
    layers, n_heads = table["layer"].values.tolist(), table.sizes["head"]
    role = roles(sorted(found), tower)
    grids = {
        "refusal_head": laid_out(dict.fromkeys(found, True), False, layers, n_heads),
        "found_by": laid_out(found, "", layers, n_heads),
        "role": laid_out(role, "", layers, n_heads),
        "band": laid_out(bands(role), -1, layers, n_heads),
        "stability": frequency,
        "direct_attribution": direct.mean(axis=0)[layers],
    }
    shown = ["recovery_mean", "recovery_mean_low", "recovery_mean_high", "head_p_adjusted"]
    return (
        table[shown]
        .assign({name: (("layer", "head"), grid) for name, grid in grids.items()})
        .assign(joint)
    )
