"""What the search for refusal heads found, as labelled tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.patching._roles import bands, roles
from refusal_nn.patching._select import Step
from refusal_nn.patching._sets import Head, head_name


def head_grid(
    found: dict[Head, str],
    tower: np.ndarray,
    table: xr.Dataset,
    joint: dict[str, np.ndarray],
    frequency: np.ndarray,
    direct: np.ndarray,
) -> xr.Dataset:
    """The root of the result: every head over ``(layer, head)``, and what they do together.

    Parameters
    ----------
    found : dict
        Refusal heads and how they were found.
    tower : array, ``[src, dst]``
        Their cascade.
    table : xarray.Dataset
        Of single heads on test pairs.
    joint : dict
        From :func:`refusal_nn.patching._confirm.joint_recovery`.
    frequency : array, ``[layer, head]``
    direct : array, ``[pair, layer, head]``
    """
    heads = sorted(found)
    layers, n_heads = table["layer"].values.tolist(), table.sizes["head"]
    role = roles(heads, tower)
    band = bands(role)
    labels = {"found_by": found, "role": role}
    place = ("layer", "head")
    data: dict[str, Any] = {"refusal_head": (place, grid_of(set(heads), layers, n_heads))}
    for name, values in labels.items():
        grid = np.full((len(layers), n_heads), "", dtype=object)
        for layer, head in heads:
            grid[layers.index(layer), head] = values[layer, head]
        data[name] = (place, grid)
    number = np.full((len(layers), n_heads), -1)
    for (layer, head), i in band.items():
        number[layers.index(layer), head] = i
    data |= {
        "band": (place, number),
        "stability": (place, frequency),
        "direct_attribution": (place, direct.mean(axis=0)[layers]),
        "joint_recovery": ("interchange", joint["value"]),
        "joint_recovery_low": ("interchange", joint["low"]),
        "joint_recovery_high": ("interchange", joint["high"]),
        "control_p": ("interchange", joint["p"]),
    }
    coords: dict[str, Any] = {
        "interchange": table["interchange"],
        "layer": layers,
        "head": np.arange(n_heads),
    }
    if joint["controls"].shape[1]:
        data["control_recovery"] = (("interchange", "draw"), joint["controls"])
        coords["draw"] = np.arange(joint["controls"].shape[1])
    shown = ("recovery_mean", "recovery_mean_low", "recovery_mean_high", "head_p_adjusted")
    return xr.Dataset({**{name: table[name] for name in shown}, **data}, coords=coords)


def step_table(steps: dict[str, list[Step]]) -> xr.Dataset:
    """The forward selections over ``(interchange, step)``, the shorter one filled with NaN."""
    n = max(len(found) for found in steps.values())
    dims = ("interchange", "step")
    names = np.full((len(steps), n), "", dtype=object)
    numbers = {k: np.full((len(steps), n), np.nan) for k in ("recovery", "gain", "p")}
    accepted = np.zeros((len(steps), n), dtype=bool)
    for i, found in enumerate(steps.values()):
        for j, step in enumerate(found):
            names[i, j] = "+".join(head_name(head) for head in step.added)
            accepted[i, j] = step.accepted
            for name, values in numbers.items():
                values[i, j] = getattr(step, name)
    return xr.Dataset(
        {
            "step_heads": (dims, names),
            "step_accepted": (dims, accepted),
            **{f"step_{name}": (dims, values) for name, values in numbers.items()},
        },
        coords={"interchange": np.array(list(steps), dtype=object), "step": np.arange(n)},
    )


def grid_of(heads: set[Head], layers: Sequence[int], n_heads: int) -> np.ndarray:
    """Which heads are in a set, ``[layer, head]`` bool."""
    return np.array([[(layer, h) in heads for h in range(n_heads)] for layer in layers])
