"""What a pass is reduced to where it runs: sums, projections, scores, divergences."""

from __future__ import annotations

from typing import Any

import torch

RESIDUAL_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
"""What must add up in every block: the last is the sum of the others."""


def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``x[row, index[row, p]]``: ``[row, token, ...]`` and ``[row, p]`` to ``[row, p, ...]``."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, index.to(x.device)]


def reduce(x: torch.Tensor, args: dict[str, Any]) -> torch.Tensor:
    """A capture: the chosen positions of ``x``, reduced where it was made.

    Always a fresh tensor: a saved view would keep, and download, the whole activation.
    """
    x = x.detach()
    if args["index"] is not None:
        x = gather(x, args["index"])
    kind = args["reduce"]
    if kind is None:
        return x.clone() if args["index"] is None else x
    if kind == "sum":  # [group, row] weights: sums over rows, in float64
        weights = args["weights"].to(device=x.device, dtype=torch.float64)
        return torch.tensordot(weights, x.to(torch.float64), dims=1)
    if kind == "project":  # [k, d] directions: projections
        return x.to(args["directions"].dtype) @ args["directions"].to(x.device).T
    if kind == "refusal_score":
        return refusal_score(x[:, 0], args["tokens"])
    if kind == "log_probs":
        return torch.log_softmax(x[:, 0].to(torch.float64), dim=-1)
    if kind == "smoothed_kl":
        return smoothed_kl(x[:, 0], args["baseline"].to(x.device))
    if kind == "smoothed_kl_slack":
        return smoothed_kl_slack(x[:, 0])
    if kind == "token_log_probs":
        return token_log_probs(x, args["tokens"].to(x.device))
    raise ValueError(f"unknown reduction {kind!r}")


def refusal_score(logits: torch.Tensor, tokens: list[int], epsilon: float = 1e-8) -> torch.Tensor:
    """Log-odds of the refusal tokens: ``log(p + e) - log(1 - p + e)``, in float64.

    ``[row, vocab]`` to ``[row]``, in nats; higher is more refusal (Arditi et al. 2024, section
    2.3).
    """
    p = torch.softmax(logits.to(torch.float64), dim=-1)[:, tokens].sum(-1)
    return torch.log(p + epsilon) - torch.log(1 - p + epsilon)


def smoothed_kl(
    logits: torch.Tensor, baseline: torch.Tensor, epsilon: float = 1e-6
) -> torch.Tensor:
    """``sum p_base (log(p_base + e) - log(p + e))`` a row, in float64 (Arditi et al. 2024, App. C).

    Not the divergence of the metric ``kl``, which has no ``e`` and cannot be below 0.

    ``baseline`` holds the log-probabilities of the unedited run, ``[row, vocab]``; where there are
    fewer than ``logits`` has rows, the rows of ``logits`` are variants of them, all rows after all.
    """
    p = torch.softmax(logits.to(torch.float64), dim=-1).unflatten(0, (-1, baseline.shape[0]))
    base = baseline.exp()
    return (base * (torch.log(base + epsilon) - torch.log(p + epsilon))).sum(-1).flatten()


def smoothed_kl_slack(logits: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """How far below 0 :func:`smoothed_kl` of a row can be, in nats, whatever the other side.

    ``-sum p log((q + e) / (p + e)) >= -log sum p (q + e) / (p + e)`` by concavity, and that sum is
    at most ``1 + e sum p / (p + e)`` because the q add up to 1. ``[row, vocab]`` to ``[row]``.
    """
    p = torch.softmax(logits.to(torch.float64), dim=-1)
    return torch.log1p(epsilon * (p / (p + epsilon)).sum(-1))


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each next token: ``[row, token, vocab]`` and ids ``[row, token]``.

    Entry ``t`` is the log-probability of ``tokens[:, t]`` given everything before it; entry 0 is 0.
    """
    logp = torch.log_softmax(logits[:, :-1].to(torch.float32), dim=-1)
    found = logp.gather(-1, tokens[:, 1:, None])[..., 0]
    return torch.cat((torch.zeros_like(found[:, :1]), found), dim=1)


def new_tokens(ids: torch.Tensor, width: int) -> torch.Tensor:
    """What a generation added to prompts of ``width`` tokens, ``[row, token]`` int32."""
    return ids[:, width:].to(torch.int32)


def residual_error(
    model: Any, taken: dict[str, torch.Tensor], args: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """``|resid_post - (resid_pre + attn_out + mlp_out)|`` over its largest magnitude, ``[layer]``."""
    parts = {site: taken[site].double() for site in RESIDUAL_SITES}
    total = parts["resid_pre"] + parts["attn_out"] + parts["mlp_out"]
    scale = torch.stack([parts[s].abs().amax((1, 2, 3)) for s in RESIDUAL_SITES]).amax(0)
    return {"error": (parts["resid_post"] - total).abs().amax((1, 2, 3)) / scale}
