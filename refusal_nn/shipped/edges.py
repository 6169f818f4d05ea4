"""Attribution to nodes and edges inside one pass: shipped, so torch only and plain data.

An edge's score is the writer's difference between corrupted and clean run, dotted with the metric's
gradient at the reader's input. No reader is split off for that: gradients are taken once at ordinary
tensors (outputs of the query, key and value projections, the MLP's branch of the residual stream,
the last block's output) and mapped to the residual stream through weights and norms. With
``y = W (w * xhat) + const`` and ``xhat`` the normed input, the gradient at the input of a head is

    (P (W~ g) - xhat * (g . (y - const)) / d) / sigma,        W~ = w * W^T,

``P`` being the removal of the mean for LayerNorm and the identity for RMSNorm. The first term is
linear in ``g / sigma``, so gradients of all integration steps are averaged per head before any
matrix is applied; the second needs ``xhat`` of each step, but only one number a head.

Rows of a pass are (step, prompt), step first; the last step is the clean run itself.

References
----------
Nanda 2023, attribution patching; Syed et al. 2023 (EAP); Hanna et al. 2024 (EAP-IG).
"""

from __future__ import annotations

from typing import Any

import torch

from refusal_nn.shipped.metrics import last_token, metric_values
from refusal_nn.shipped.parts import (
    gain_and_bias,
    head_output,
    heads_of,
    projection,
    scaled,
    wide,
)

BLOCK_OF_POSITIONS = 1 << 28  # elements of the writers' differences held at a time


def edge_scores(model: Any, taken: dict[str, Any], args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Scores of every edge for each prompt.

    Parameters
    ----------
    model : nnsight model
    taken : dict
        Live captures of the pass, lists with one tensor a layer: ``projection0`` and so on, one for
        each module that makes queries, keys or values, ``resid_pre``, ``mlp_reader``, ``z``,
        ``mlp_out``; and ``final`` and ``readout``.
    args : dict
        ``places`` (see ``block_places``), ``weights`` (one a step), ``metric``, ``mask`` ``[prompt,
        token]``, ``parallel``, ``prefix`` (how many writers each reader sees), ``n_final`` (writers
        before the residual stream that the metric reads), and of the corrupted run ``input``, ``z``,
        ``mlp``, ``corrupted_readout``.

    Returns
    -------
    dict
        ``edge_score`` ``[prompt, edge]``, float32 or float64, edges in order of writer, then reader;
        ``metric_clean`` and ``metric_corrupted`` ``[prompt]``.
    """
    places, weights, prefix = args["places"], args["weights"], args["prefix"]
    steps, n_src = len(weights), prefix[-1]
    names = [f"projection{i}" for i in range(len(places[0]["projections"]))]
    targets = [t for name in names for t in taken[name]] + taken["mlp_reader"] + [taken["final"]]
    metrics, found = gradients(taken, targets, args)
    n = len(places)
    by_layer = [found[i * n : (i + 1) * n] for i in range(len(names) + 1)]
    with torch.no_grad():
        parts = differences(model, clean_parts(taken, args), args, n)
        home = parts["input"].device
        w = torch.tensor(weights, device=home, dtype=parts["input"].dtype)
        prompts, tokens, d_model = parts["input"].shape
        columns = [sum(p["heads"] for q in pl["projections"] for p in q["parts"]) for pl in places]
        scores = w.new_zeros(prompts, n_src, sum(columns) + len(columns) + 1)
        width = max(1, BLOCK_OF_POSITIONS // (n_src * prompts * d_model))
        for first in range(0, tokens, width):
            part = slice(first, first + width)
            written = w.new_empty(n_src, prompts, min(width, tokens - first), d_model)
            written[0] = parts["input"][:, part]
            at, column = 1, 0
            for layer, place in enumerate(places):
                heads = place["writer"]["heads"]
                outputs = [taken[name][layer] for name in names]
                slopes = [by_layer[i][layer] for i in range(len(names))]
                reading = by_steps(taken["resid_pre"][layer], steps, part, home)
                into_heads = head_gradients(model, place, outputs, slopes, reading, w, part)
                norm = place["mlp_norm"] if args["parallel"] else None
                into_mlp = mlp_gradient(model, norm, by_layer[-1][layer], reading, w, part)
                add_scores(scores, written, at, column, into_heads)
                column += columns[layer]
                written[at : at + heads] = write_heads(model, place, parts["z"][layer][:, part])
                seen = at if args["parallel"] else at + heads
                add_scores(scores, written, seen, column, into_mlp[None])
                column += 1
                at += heads
                written[at] = parts["mlp"][layer][:, part]
                at += 1
            final = average(by_steps(found[-1], steps, part, home), w)
            add_scores(scores, written, args["n_final"], column, final[None])
        there = torch.arange(n_src, device=home)[:, None] < torch.tensor(prefix, device=home)
    return {"edge_score": scores[:, there], **metrics}


def node_scores(model: Any, taken: dict[str, Any], args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Scores of every writer for each prompt: the sums of its edges' scores, without the edges.

    Parameters are those of :func:`edge_scores`, with live captures ``resid_pre`` (of layer 0),
    ``attn_out`` and ``mlp_out`` instead of readers.

    Returns
    -------
    dict
        ``node_score`` ``[prompt, src]``, ``metric_clean`` and ``metric_corrupted``.
    """
    places, weights = args["places"], args["weights"]
    steps, n = len(weights), len(args["places"])
    targets = [taken["resid_pre"][0], *taken["attn_out"], *taken["mlp_out"]]
    metrics, found = gradients(taken, targets, args)
    with torch.no_grad():
        parts = differences(model, clean_parts(taken, args), args, n)
        home = parts["input"].device
        w = torch.tensor(weights, device=home, dtype=parts["input"].dtype)
        every = slice(None)
        slopes = [average(by_steps(g, steps, every, home), w) for g in found]
        columns = [(parts["input"] * slopes[0]).sum((1, 2))[:, None]]
        for layer, place in enumerate(places):
            heads = head_output(model, place["writer"]).to(w)
            slope = torch.einsum("ptd,hed->pthe", slopes[1 + layer], heads)
            columns.append((parts["z"][layer] * slope).sum((1, 3)))
            mlp = parts["mlp"][layer] * slopes[1 + n + layer]
            columns.append(mlp.sum((1, 2))[:, None])
    return {"node_score": torch.cat(columns, dim=1), **metrics}


def gradients(
    taken: dict[str, Any], targets: list[torch.Tensor], args: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """The metric of both runs, and its gradient, summed over rows, at tensors of the pass.

    The sum, not the mean: rows do not meet in a pass, so each row's gradient is then its own, however
    many there are. A tensor that the metric does not depend on has gradient zero.
    """
    readout = last_token(taken["readout"])
    prompts = args["mask"].shape[0]
    clean = readout[-prompts:].detach()
    values = metric_values(readout, args["metric"], clean)
    found = torch.autograd.grad(values.sum(), targets, allow_unused=True)
    corrupted = metric_values(last_token(args["corrupted_readout"]), args["metric"], clean)
    metrics = {"metric_clean": values[-prompts:].detach(), "metric_corrupted": corrupted.detach()}
    return metrics, [
        torch.zeros_like(t) if g is None else g for t, g in zip(targets, found, strict=True)
    ]


def clean_parts(taken: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """What the clean run's writers give: the last step's rows of the live captures."""
    prompts = args["mask"].shape[0]
    heads = args["places"][0]["writer"]["heads"]
    return {
        "input": taken["resid_pre"][0][-prompts:].detach(),
        "z": [x[-prompts:].detach().unflatten(-1, (heads, -1)) for x in taken["z"]],
        "mlp": [x[-prompts:].detach() for x in taken["mlp_out"]],
    }


def differences(
    model: Any, clean: dict[str, Any], args: dict[str, Any], layers: int
) -> dict[str, Any]:
    """By how much the writers of the first blocks differ in the corrupted run.

    Parameters
    ----------
    clean : dict
        ``input`` ``[prompt, token, d_model]``, and of each layer ``z`` ``[prompt, token, head, d_head]``
        and ``mlp`` ``[prompt, token, d_model]``.
    args : dict
        The same of the corrupted run, ``places`` and ``mask``.
    layers : int
        Blocks.

    Returns
    -------
    dict
        Corrupted minus clean under the same names, zero at padding. Behind a norm (Gemma, OLMo 2) a
        head's z is divided by the root mean square of what the heads of its run write together, so
        that heads add up to what attention writes in both runs.
    """
    mask = args["mask"]
    home = clean["input"].device

    def difference(theirs: torch.Tensor, ours: torch.Tensor) -> torch.Tensor:
        out = wide(theirs).to(home) - wide(ours).to(home)
        keep = mask.to(home).reshape(*mask.shape, *([1] * (out.dim() - 2)))
        return out.masked_fill_(keep == 0, 0)

    z = []
    for layer, place in enumerate(args["places"][:layers]):
        runs = (wide(args["z"][layer]), wide(clean["z"][layer]))
        z.append(difference(*(scaled(model, run, place["writer"]) for run in runs)))
    return {
        "input": difference(args["input"], clean["input"]),
        "z": z,
        "mlp": [difference(args["mlp"][i], clean["mlp"][i]) for i in range(layers)],
    }


def by_steps(x: torch.Tensor, steps: int, part: slice, home: torch.device) -> torch.Tensor:
    """``[step * prompt, token, ...]`` to ``[step, prompt, token, ...]``, at some tokens, widened."""
    return wide(x.detach().unflatten(0, (steps, -1))[:, :, part]).to(home)


def average(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum over steps, the first axis."""
    if len(weights) == 1:
        return x[0] * weights[0]
    return torch.tensordot(weights, x, dims=1)


def normed(x: torch.Tensor, norm: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """``xhat`` and ``1 / sigma`` of a norm: its output before gain and bias, and the inverse scale."""
    if norm["kind"] == "layer":
        x = x - x.mean(-1, keepdim=True)
    inverse = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm["epsilon"])
    return x * inverse, inverse


def head_gradients(
    model: Any,
    place: dict[str, Any],
    outputs: list[torch.Tensor],
    slopes: list[torch.Tensor],
    reading: torch.Tensor,
    weights: torch.Tensor,
    part: slice,
) -> torch.Tensor:
    """Averaged gradients at the inputs of a layer's q, k and v readers.

    Parameters
    ----------
    outputs, slopes : list of torch.Tensor
        Output of each projection module and the gradient there, ``[step * prompt, token, width]``.
    reading : torch.Tensor
        Residual stream that the layer reads, ``[step, prompt, token, d_model]``.
    weights : torch.Tensor
        One a step.
    part : slice
        Of the tokens.

    Returns
    -------
    torch.Tensor
        ``[reader, prompt, token, d_model]``, readers in order q, k, v.
    """
    steps, home = len(weights), reading.device
    matrices, biases, values, gradient = [], [], [], []
    for module, y, g in zip(place["projections"], outputs, slopes, strict=True):
        y, g = (by_steps(x, steps, part, home) for x in (y, g))
        for piece in module["parts"]:
            matrix, bias = projection(model, piece)
            matrices.append(matrix.to(reading))
            biases.append(matrix.new_zeros(matrix.shape[:2]) if bias is None else bias)
            values.append(heads_of(y, piece["view"], piece["heads"]))
            gradient.append(heads_of(g, piece["view"], piece["heads"]))
    matrix = torch.cat(matrices)  # [reader, d_head, d_model]
    g = torch.cat(gradient, dim=-2)  # [step, prompt, token, reader, d_head]
    norm = place["attn_norm"]
    if norm is None:
        return apply_heads(average(g, weights), matrix)
    gain, shift = gain_and_bias(model, norm, reading)
    constant = torch.cat([b.to(reading) for b in biases])
    if shift is not None:
        constant = constant + matrix @ shift
    y = torch.cat(values, dim=-2)
    y = y - constant
    xhat, inverse = normed(reading, norm)
    inverse = inverse * weights[:, None, None, None]
    along = (g * y).sum(-1) * (inverse / reading.shape[-1])  # [step, prompt, token, reader]
    matrix = matrix * gain
    if norm["kind"] == "layer":
        matrix = matrix - matrix.mean(-1, keepdim=True)
    out = apply_heads((g * inverse[..., None]).sum(0), matrix)
    along = along.permute(1, 2, 3, 0).flatten(0, 1)  # [prompt * token, reader, step]
    xhat = xhat.permute(1, 2, 0, 3).flatten(0, 1)
    away = (along @ xhat).transpose(0, 1).reshape(out.shape)
    return out.sub_(away)


def apply_heads(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """``[prompt, token, head, d_head]`` times ``[head, d_head, d_model]``: ``[head, prompt, token, d]``."""
    flat = x.flatten(0, 1).transpose(0, 1)
    return torch.bmm(flat, matrix).unflatten(1, x.shape[:2])


def mlp_gradient(
    model: Any,
    norm: dict[str, Any] | None,
    slope: torch.Tensor,
    reading: torch.Tensor,
    weights: torch.Tensor,
    part: slice,
) -> torch.Tensor:
    """Averaged gradient at the MLP's reading of the residual stream, ``[prompt, token, d_model]``.

    A sequential block's is taken at the norm's own branch of the residual stream, where it is the
    gradient already (``norm`` None). A parallel block's is taken at the MLP's input and mapped through
    the norm here, because that norm may feed attention too.
    """
    g = by_steps(slope, len(weights), part, reading.device)
    if norm is None:
        return average(g, weights)
    gain, _ = gain_and_bias(model, norm, reading)
    xhat, inverse = normed(reading, norm)
    g = g * gain
    out = g - xhat * (g * xhat).mean(-1, keepdim=True)
    if norm["kind"] == "layer":
        out = out - g.mean(-1, keepdim=True)
    return (out * inverse * weights[:, None, None, None]).sum(0)


def write_heads(model: Any, place: dict[str, Any], z: torch.Tensor) -> torch.Tensor:
    """What the differences of a layer's heads write, ``[head, prompt, token, d_model]``."""
    return apply_heads(z, head_output(model, place["writer"]).to(z))


def add_scores(
    scores: torch.Tensor,
    written: torch.Tensor,
    seen: int,
    column: int,
    gradient: torch.Tensor,
) -> None:
    """Add ``written . gradient`` over tokens and ``d_model`` for readers of the first ``seen`` writers."""
    readers = gradient.shape[0]
    for prompt in range(scores.shape[0]):
        a = written[:seen, prompt].flatten(1)
        b = gradient[:, prompt].flatten(1)
        scores[prompt, :seen, column : column + readers].addmm_(a, b.T)
