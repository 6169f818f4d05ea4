"""A vector that is grown along its gradient: 40 steps that raise the refusal of harmless prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr

import refusal_nn as rn
from refusal_nn.contrasts import Metric
from refusal_nn.interventions import Edit
from refusal_nn.models import Model
from refusal_nn.store import Looped, Spec, register, step_rng
from refusal_nn.tracing import Answers, Batch, Capture, Optimizer, Steps, Work, pad

LAYER, STEPS, PROMPTS, ROWS = 3, 40, 8, 4
ADAM = Optimizer(lr=0.05, maximize=True, weight_decay=0.01)

register(
    Spec("ascent_score", ("step",), "float", "nats", "Mean refusal score of the prompts of a step"),
    Spec("ascent_norm", ("step",), "float", "1", "Norm of the gradient of a step"),
)


def records(steps: int = STEPS) -> xr.Dataset:
    names = ("ascent_score", "ascent_norm")
    return xr.Dataset({n: ("step", np.full(steps, np.nan)) for n in names})


class Ascent:
    """Two batches of harmless prompts a step, drawn anew for each; their gradients are summed."""

    def __init__(self, model: Model, dtype: type = np.float32, optimizer: Optimizer = ADAM) -> None:
        prompts = rn.load_prompts("tiny-bench").val
        harmless = [p for p, h in zip(prompts.text, prompts.harm, strict=True) if h == "harmless"]
        self.rows = model.chat.tokens(harmless[:PROMPTS])
        self.model = model
        self.optimizer = optimizer
        self.metric = Metric.refusal_log_odds(tokens(model))
        self.first = optimizer.start(np.zeros(model.d_model, dtype))

    def batches(self, step: int) -> list[Batch]:
        order = step_rng(0, step).permutation(PROMPTS)
        parts = (order[a : a + ROWS] for a in range(0, PROMPTS, ROWS))
        return [pad([self.rows[i] for i in part], self.model.pad_token) for part in parts]

    def ask(self, work: Work, step: int, state: Mapping[str, Any]) -> tuple[Any, Any]:
        edit = Edit(LAYER, "resid_pre", "add", {"direction": state["vector"]})
        captures = [
            self.metric.readout(self.model, live=True),
            Capture("added", "resid_pre", LAYER, live=True),
        ]
        fixed = {
            "metric": self.metric.plain(),
            "weights": torch.full((ROWS,), 1 / PROMPTS, dtype=torch.float64),
        }
        one, two = self.batches(step)
        p = work.forward(
            one,
            captures,
            [edit],
            gradient=True,
            after=(
                "vector_gradient",
                {**fixed, "vector": state["vector"], "keep": ["gradient"]},
            ),
        )
        update = {
            **fixed,
            **state,
            "gradient": p.held("gradient"),
            "step": step,
            "optimizer": self.optimizer.plain(),
            "keep": list(state),
        }
        q = work.forward(two, captures, [edit], gradient=True, after=("vector_step", update))

        def told(answers: Answers) -> dict[str, Any]:
            scores = torch.cat([answers[p]["metric"], answers[q]["metric"]])
            return {"ascent_score": scores.mean(), "ascent_norm": answers[q]["gradient_norm"]}

        return {name: q.held(name) for name in state}, told

    def run(self, recorder: Any, steps_per_job: int = 16, *, steps: int = STEPS) -> Looped:
        body = Steps(self.model, self.ask, steps_per_job)
        return recorder.loop("ascend", self.first, steps, body, records=records(steps))


def tokens(model: Model) -> list[int]:
    """What this model's refusals begin with."""
    return [model.tokenizer.encode("I cannot", add_special_tokens=False)[0]]
