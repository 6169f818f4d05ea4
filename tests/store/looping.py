"""A loop with every kind of state, whose steps run stages and draw random numbers; also as a program.

``python -m tests.store.looping FOLDER PAUSE`` runs it to the end, with a pause in each step and a line
to standard output whenever something is kept.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.store import Next, RunRecorder, Spec, register, step_rng
from tests.store.synthetic import FINGERPRINT, LAYERS, batches, provenance

STEPS, ENDS, WIDTH = 20, 17, 6

register(
    Spec("loop_vector", ("layer", "d_model"), "float", "1", "What the loop moves"),
    Spec("loop_chosen", ("layer",), "bool", "", "What the loop has chosen so far"),
    Spec("loop_name", (), "string", "", "What the loop calls its last step"),
    Spec("loop_loss", ("step",), "float", "nats", "How far the loop has come"),
    Spec("loop_path", ("layer", "step"), "float", "1", "What each step measured"),
    Spec("loop_note", ("step",), "string", "", "What a step says"),
    Spec("loop_measured", ("layer",), "float", "1", "What one step measured"),
)


def first_state() -> xr.Dataset:
    return xr.Dataset(
        {
            "loop_vector": (("layer", "d_model"), np.ones((LAYERS, WIDTH), np.float32)),
            "loop_chosen": ("layer", np.zeros(LAYERS, bool)),
            "loop_name": ((), np.array("", object)),
        },
        coords={"layer": np.arange(LAYERS)},
        attrs={"site": "resid_pre"},
    )


def records(steps: int = STEPS) -> xr.Dataset:
    return xr.Dataset(
        {
            "loop_loss": ("step", np.full(steps, np.nan)),
            "loop_path": (("layer", "step"), np.full((LAYERS, steps), np.nan, np.float32)),
            "loop_note": ("step", np.full(steps, "", object)),
        },
        coords={"layer": np.arange(LAYERS), "step": np.arange(steps)},
    )


def step(i: int, state: xr.Dataset, recorder: Any) -> Next:
    """A stage that depends on the state, noise of this step, and a state of every kind of value."""
    vector = state["loop_vector"].values
    template = xr.Dataset({"loop_measured": ("layer", np.zeros(LAYERS))}, {"layer": range(LAYERS)})
    regions = batches(LAYERS, 2, "layer")
    found = recorder.stage(
        "measure",
        template,
        regions,
        lambda b: template.isel(regions[b]).assign(
            loop_measured=("layer", vector[regions[b]["layer"]].sum(1, dtype=float) + i)
        ),
    )["loop_measured"].values
    noise = step_rng(5, i).normal(size=vector.shape).astype(np.float32)
    vector *= np.float32(0.9)  # in place: what a step is given is its own
    return Next(
        {
            "loop_vector": vector + noise / (1 + np.float32(found.mean()) ** 2),
            "loop_chosen": state["loop_chosen"].values | (np.arange(LAYERS) == i % 5),
            "loop_name": f"{state['loop_name'].item()[-9:]}–{i}",
        },
        {"loop_loss": float((vector**2).mean()), "loop_path": found, "loop_note": f"Schritt {i}"},
        done=i == ENDS - 1,
    )


def analyse(recorder: Any, *, every: int | None = None, pause: float = 0.0) -> xr.DataTree:
    def paused(i: int, state: xr.Dataset, scope: Any) -> Next:
        time.sleep(pause)
        return step(i, state, scope)

    found = recorder.loop("grow", first_state(), STEPS, paused, records=records(), every=every)
    best = found.state[["loop_vector"]]
    return recorder.commit(
        {"/": best}, {"n_steps": found.steps}, keep=["grow", "grow_state", "grow_3_measure"]
    )


def recorder(folder: Path, **options: Any) -> RunRecorder:
    return RunRecorder(
        folder / "run", fingerprint=FINGERPRINT, provenance=provenance(), request={}, **options
    )


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True)
    analyse(
        recorder(out, progress=lambda *told: print(*told, flush=True)), pause=float(sys.argv[2])
    )
