"""Metrics of a pass, computed where it runs: shipped, so torch only and plain data.

A metric reads one vector a row, the *readout*: logits at the last token, or the residual stream
there. Its specification is a dict made by :class:`refusal_nn.attribution.Metric`.
"""

from __future__ import annotations

from typing import Any

import torch

from refusal_nn.shipped.reductions import refusal_score


def metric_values(readout: torch.Tensor, spec: dict[str, Any], clean: torch.Tensor) -> torch.Tensor:
    """The metric of each row, in float64 and differentiable.

    Parameters
    ----------
    readout : torch.Tensor
        ``[row, width]``: logits, or residual stream for a projection.
    spec : dict
        ``kind`` and its arguments.
    clean : torch.Tensor
        ``[row, width]``, or fewer rows that repeat: the readout of the unedited run on the clean
        prompt of each row, which ``kl`` compares with.

    Returns
    -------
    torch.Tensor
        ``[row]``.
    """
    kind = spec["kind"]
    if kind == "refusal-log-odds":
        return refusal_score(readout, spec["tokens"])
    x = readout.to(torch.float64)
    if kind == "logit-difference":
        return x[:, spec["a"]].mean(-1) - x[:, spec["b"]].mean(-1)
    if kind == "projection":
        return x @ spec["direction"].to(device=x.device, dtype=x.dtype)
    if kind == "kl":
        base = torch.log_softmax(clean.detach().to(x.device, x.dtype), dim=-1)
        base = base.repeat(x.shape[0] // base.shape[0], 1)
        return (base.exp() * (base - torch.log_softmax(x, dim=-1))).sum(-1)
    raise ValueError(f"unknown metric {kind!r}")


def last_token(readout: torch.Tensor) -> torch.Tensor:
    """The last token of each row of a left-padded batch: ``[row, token, width]`` to ``[row, width]``."""
    return readout[:, -1]


def metric_after(
    model: Any, taken: dict[str, Any], args: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The metric of each row of a pass, from its capture ``readout``: ``{"metric": [row]}``.

    The readout of the clean run is ``args["clean"]``, a capture of an earlier pass, or that of this
    pass's first ``args["clean_rows"]`` rows.
    """
    readout = last_token(taken["readout"])
    clean = last_token(args["clean"]) if "clean" in args else readout[: args["clean_rows"]]
    return {"metric": metric_values(readout, args["metric"], clean)}
