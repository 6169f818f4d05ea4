"""The demo's summary says what the runs hold, for prompt sets of any styles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from refusal_nn.demo import Demo
from refusal_nn.responses import rates
from refusal_nn.runs import Run
from tests.report import synthetic


def made(tree: xr.DataTree) -> Run:
    """A complete run that holds a tree."""
    run = Run("x", Path("x.zarr"), "complete", dict(tree.attrs))
    run.__dict__["tree"] = tree
    return run


def demo_on(styles: list[str]) -> Demo:
    """A demo whose test prompts are of these styles."""
    root = synthetic.evaluation().to_dataset()
    root = root.isel(prompt=np.flatnonzero(np.isin(root["style"].values, styles)))
    evaluated = xr.DataTree.from_dict({"/": root, "/rates": rates(root)})
    selected = xr.DataTree(
        xr.Dataset(
            attrs={
                "model": "some-model",
                **dict.fromkeys(("layer", "position", "bypass", "induce", "kl"), 0.5),
            }
        )
    )
    trees = (xr.DataTree(), xr.DataTree(), selected, evaluated)
    return Demo(tuple(made(tree) for tree in trees), Path("x.html"))


@pytest.mark.parametrize(
    ("styles", "groups", "controls"),
    [
        (
            ["toxic", "safe", "hard"],
            ["harmful", "harmless", "hard"],
            ["random_ablation", "random_addition"],
        ),
        (["toxic", "safe"], ["harmful", "harmless"], ["random_ablation", "random_addition"]),
        (["toxic", "hard"], ["harmful", "hard"], ["random_ablation"]),
        (["safe", "hard"], ["harmless", "hard"], ["random_addition"]),
    ],
)
def test_the_summary_holds_the_classes_that_the_prompts_have(
    styles: list[str], groups: list[str], controls: list[str]
) -> None:
    summary = demo_on(styles).summary()
    assert list(summary["refusal_rate"]) == groups
    assert list(summary["controls"]) == controls
    assert bool(summary["per_category"]) == ("toxic" in styles)
    for group in groups:
        assert 0 <= summary["refusal_rate"][group]["baseline"]["rate"] <= 1
