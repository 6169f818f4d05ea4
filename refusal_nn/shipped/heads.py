"""What heads write, measured inside a pass: shipped, so torch only and plain data."""

from __future__ import annotations

from typing import Any

import torch

from refusal_nn.shipped.metrics import last_token, metric_values
from refusal_nn.shipped.parts import head_output, scaled, wide


def direct_heads(
    model: Any, taken: dict[str, Any], args: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """What each head's write at the last token adds to the metric past everything in between.

    The difference between what the head writes in this run and in another one, dotted with the
    gradient of the metric at the residual stream it reads: first order in the final norm and the
    metric, exact in the head.

    Parameters
    ----------
    model : nnsight model
    taken : dict
        ``final`` and ``readout``, live; ``z`` ``[layer, row, 1, head, d_head]``.
    args : dict
        ``metric``; ``writers``, one a layer (see ``block_places``); ``z`` of the other run.

    Returns
    -------
    dict
        ``direct`` ``[row, layer, head]``, float32 or float64.
    """
    readout = last_token(taken["readout"])
    values = metric_values(readout, args["metric"], readout.detach())
    (slope,) = torch.autograd.grad(values.sum(), [taken["final"]])
    with torch.no_grad():
        slope = wide(slope[:, -1])
        columns = []
        for layer, writer in enumerate(args["writers"]):
            runs = [wide(run[layer][:, 0].detach()) for run in (taken["z"], args["z"])]
            here, there = (scaled(model, run, writer) for run in runs)
            matrix = head_output(model, writer).to(here)
            along = torch.einsum("hed,rd->rhe", matrix, slope.to(here))
            columns.append(((here - there) * along).sum(-1).to(slope.device))
    return {"direct": torch.stack(columns, dim=1)}
