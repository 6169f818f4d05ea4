"""What a table of candidate scores must look like, wherever it came from."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from refusal_nn.errors import RequestError

SCORES = ("bypass", "induce", "kl")
TABLE = ("position", "layer")


def as_dataset(scores: Any) -> xr.Dataset:
    """A table as a Dataset: of a stored run the root group, with the prompts used before beside it."""
    if isinstance(scores, xr.DataTree):
        root = scores.to_dataset()
        return root.merge(scores["used"].to_dataset()) if "used" in scores.children else root
    if not isinstance(scores, xr.Dataset):
        raise RequestError(
            f"scores are a {type(scores).__name__}; give a Dataset with {', '.join(SCORES)}."
        )
    return scores


def checked_table(scores: xr.Dataset) -> xr.Dataset:
    """The three scores over (position, layer), with integer labels."""
    if missing := [name for name in SCORES if name not in scores.data_vars]:
        raise RequestError(
            f"the score table has no {', '.join(missing)} (it has "
            f"{', '.join(map(str, scores.data_vars)) or 'no variables'}); selection needs "
            f"{', '.join(SCORES)}, as direction score makes them."
        )
    for name in SCORES:
        if set(scores[name].dims) != set(TABLE):
            raise RequestError(
                f"{name} has dims ({', '.join(map(str, scores[name].dims))}); it must have "
                "position and layer, and no other."
            )
        if scores[name].dtype.kind not in "fiu":
            raise RequestError(f"{name} holds {scores[name].dtype}; scores must be numbers.")
    labels = {dim: whole_labels(scores, dim) for dim in TABLE}
    if (labels["position"] >= 0).any():
        raise RequestError(
            "positions must be labelled from the end of the prompt, -n to -1; the table has "
            f"{labels['position'].max()}."
        )
    if (labels["layer"] < 0).any():
        raise RequestError(f"layers count from 0; the table has layer {labels['layer'].min()}.")
    names = [*SCORES]
    table = scores[names].reset_coords(drop=True).transpose(*TABLE)
    return table.assign_coords(labels)


def whole_labels(scores: xr.Dataset, dim: str, what: str = "the score table") -> NDArray[np.int64]:
    """Labels of a dim as whole numbers, each once; ``what`` is the table's name in messages.

    Raises
    ------
    RequestError
        If there are none, or they are not whole numbers, or one occurs twice.
    """
    has = "has" if what == "the score table" else "have"
    if dim not in scores.coords:
        raise RequestError(f"{what} {has} no labels for {dim}; assign a coord {dim!r}.")
    values = np.asarray(scores[dim].values)
    whole = values.dtype.kind in "iuf" and bool((values == np.floor(values)).all())
    if not whole:
        raise RequestError(
            f"labels of {dim} must be whole numbers; {what} {has} {values.tolist()}."
        )
    labels = values.astype(np.int64)
    if len(np.unique(labels)) != len(labels):
        raise RequestError(f"labels of {dim} occur twice in {what}; drop one of each.")
    return labels


def layers_of_model(scores: xr.Dataset) -> int:
    layers = np.asarray(scores["layer"].values)
    largest = int(layers.max()) if layers.size else -1
    if scores.attrs.get("n_layers") is None:
        return largest + 1
    try:
        n_layers = operator.index(np.asarray(scores.attrs["n_layers"])[()])
    except TypeError as e:
        raise RequestError(
            f"attrs['n_layers'] of the score table is {scores.attrs['n_layers']!r}; it must be a "
            "whole number."
        ) from e
    if n_layers <= largest:
        raise RequestError(
            f"the score table has layer {largest} but attrs['n_layers'] = {n_layers}; correct one."
        )
    return n_layers
