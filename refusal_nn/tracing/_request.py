"""One batch asked of a model, and what comes back.

A *job* is a list of requests, each one pass or one generation of a batch. Requests of a job run in
order, and a later one may use what an earlier one *held* (a ``Ref`` in its plan), so that a baseline
never has to leave the machine it was computed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from refusal_nn.shipped.plans import PlainRequest, Plan


@dataclass(frozen=True)
class Request:
    """One batch.

    Parameters
    ----------
    inputs : mapping
        ``input_ids``, ``attention_mask``, ``position_ids``; tensors ``[row, token]``.
    plan : Plan
        From ``build_plan``.
    options : mapping
        Arguments of the model's forward or generate.
    generate : bool
        Generate instead of one forward pass; the result is then ``{"ids": [row, token]}``, the new
        tokens.
    """

    inputs: Mapping[str, torch.Tensor]
    plan: Plan
    options: Mapping[str, Any] = field(default_factory=dict)
    generate: bool = False

    def plain(self, device: torch.device | None = None) -> PlainRequest:
        """The form that ships, its inputs on a device."""
        return {
            "inputs": {name: x.to(device) for name, x in self.inputs.items()},
            "plan": self.plan,
            "options": dict(self.options),
            "generate": self.generate,
        }


Results = list[dict[str, torch.Tensor]]
