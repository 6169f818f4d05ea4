"""What readers read when one edge is patched: shipped, so torch only and plain data.

Patching the edge from writer ``u`` to reader ``v`` changes what ``v`` reads from ``x`` to ``x + D_u``
and nothing else. A reader's own computation is a norm and a matrix, so the queries, keys, values or
MLP inputs of all writers are computed at once here, and later passes start at that block with one of
them set.
"""

from __future__ import annotations

from typing import Any

import torch

from refusal_nn.shipped.edges import differences, write_heads
from refusal_nn.shipped.metrics import last_token, metric_values
from refusal_nn.shipped.parts import projection, through_norm, wide


def patched_readings(
    model: Any, taken: dict[str, Any], args: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """What the readers of one block make of each writer's patch.

    Parameters
    ----------
    model : nnsight model
    taken : dict
        Of the clean run: ``input``, ``z``, ``mlp``, ``resid_pre``, ``readout``, and ``resid_mid`` of
        the block unless attention and MLP are parallel; or ``final`` where ``layer`` is None.
    args : dict
        Of the corrupted run ``input``, ``z``, ``mlp``; ``places``, ``mask``, ``parallel``, ``metric``;
        ``layer``: the block, or None for the residual stream that the metric reads; ``layers``:
        blocks before it.

    Returns
    -------
    dict
        ``q``, ``k``, ``v`` ``[head, writer * prompt, token, 1, d_head]`` and ``mlp_in`` ``[writer *
        prompt, token, d_model]``, or ``final``; and of the clean run ``resid_pre``, ``readout`` and
        its ``metric`` ``[prompt]``.
    """
    layer, layers = args["layer"], args["layers"]
    parts = differences(model, taken, args, layers + (layer is not None))
    heads = args["places"][0]["writer"]["heads"]
    count = 1 + layers * (heads + 1)
    written = parts["input"].new_empty(count + heads, *parts["input"].shape)
    written[0] = parts["input"]
    for i, place in enumerate(args["places"][: layers + (layer is not None)]):
        at = 1 + i * (heads + 1)
        written[at : at + heads] = write_heads(model, place, parts["z"][i])
        if i < layers:
            written[at + heads] = parts["mlp"][i]
    out = of_clean_run(taken, args)
    if layer is None:
        return {**out, "final": (wide(taken["final"]) + written[:count]).flatten(0, 1)}
    place = args["places"][layer]
    x = wide(taken["resid_pre"][layer]) + written[:count]
    attn_norm, mlp_norm = place["attn_norm"], place["mlp_norm"]
    normed = through_norm(model, attn_norm and attn_norm["path"], x)
    for group in place["projections"]:
        for piece in group["parts"]:
            matrix, bias = projection(model, piece)
            y = torch.einsum("wptd,hed->hwpte", normed.to(matrix), matrix)
            if bias is not None:
                y = y + bias[:, None, None, None]
            out[piece["site"]] = y.flatten(1, 2)[..., None, :]
    if not args["parallel"]:
        x = wide(taken["resid_mid"]) + written
    out["mlp_in"] = through_norm(model, mlp_norm and mlp_norm["path"], x).flatten(0, 1)
    return out


def patched_writes(
    model: Any, taken: dict[str, Any], args: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """What attention of each block writes when one head is that of the corrupted run.

    Parameters are those of :func:`patched_readings`, with ``attn_out`` of the clean run.

    Returns
    -------
    dict
        ``attn_out`` ``[layer, head * prompt, token, d_model]``; ``resid_pre``, ``readout``, ``metric``
        of the clean run.
    """
    parts = differences(model, taken, args, len(args["places"]))
    out = []
    for i, place in enumerate(args["places"]):
        written = write_heads(model, place, parts["z"][i])
        out.append((wide(taken["attn_out"][i]) + written).flatten(0, 1))
    return {"attn_out": torch.stack(out), **of_clean_run(taken, args)}


def of_clean_run(taken: dict[str, Any], args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What later passes and the caller need of the clean run: ``resid_pre``, ``readout``, ``metric``."""
    readout = last_token(taken["readout"])
    return {
        "resid_pre": taken["resid_pre"],
        "readout": taken["readout"],
        "metric": metric_values(readout, args["metric"], readout),
    }
