"""Running circuits: shipped functions that make each reader see what a circuit lets it see.

Ships to a server like :mod:`refusal_nn.shipped.walk`, under the same rules: torch only, top-level
functions, plain data.

Rows of a batch are (circuit, pair), circuit first: row ``c * pairs + n``. The blocks add up the
values of the circuit's own run; a reader whose incoming edges are partly excluded reads that sum
plus, for each excluded edge, *ablated minus own* value of the writer, through the norm in front of
it. So an edge inside the circuit carries what the circuit computed, and one outside the ablated
value [1]_. Queries, keys and values are overwritten at the outputs of their projections, the MLP at
its input, and the logits at the last block's output: the full circuit is the model, and the empty
one the ablated run.

What a head writes is ``z W_O`` without the bias. Where a norm follows the output projection (Gemma,
OLMo 2) it is ``gain * z W_O / rms``, with the root mean square of what all heads of that run write
together: so the heads add up to what attention writes, in every run.

References
----------
.. [1] Hanna et al. 2024, Have faith in faithfulness, section 3.
"""

from __future__ import annotations

from typing import Any

import torch

from refusal_nn.shipped.parts import (
    gain_and_bias,
    head_output,
    module_at,
    projection,
    scaled,
    through_norm,
    wide,
)


def circuit_sources(model: Any, taken: dict[str, Any], args: dict[str, Any]) -> dict[str, Any]:
    """What every writer of a run contributes, in the form :func:`record_writer` takes.

    Parameters
    ----------
    model : nnsight model
    taken : dict
        ``input`` ``[row, token, d_model]``, ``z`` ``[layer, row, token, head, d_head]`` and ``mlp``
        ``[layer, row, token, d_model]``.
    args : dict
        ``places``: one plain dict a layer. ``sum``: add up the rows, in float64.

    Returns
    -------
    dict
        The same names.
    """
    z = wide(taken["z"])
    parts = {
        "input": wide(taken["input"]),
        "z": torch.stack([scaled(model, z[i], place) for i, place in enumerate(args["places"])]),
        "mlp": wide(taken["mlp"]),
    }
    if args["sum"]:
        axis = {"input": 0, "z": 1, "mlp": 1}
        parts = {name: x.to(torch.float64).sum(axis[name]) for name, x in parts.items()}
    return {**taken, **parts}


def record_residual(x: torch.Tensor, args: dict[str, Any], state: dict[str, Any]) -> torch.Tensor:
    """Remember the residual stream at a block's input, or, with ``add``, behind its attention."""
    state["residual"] = state["residual"].to(x.device) + wide(x) if args["add"] else wide(x)
    state["unwritten"] = state.get("biases")  # the part of it that no writer writes
    return x


def record_writer(x: torch.Tensor, args: dict[str, Any], state: dict[str, Any]) -> torch.Tensor:
    """Remember by how much a writer's ablated value differs from its own, or its own where that is 0.

    ``args["value"]`` is what :func:`circuit_sources` gives for this writer, ``[pair, token, ...]`` or
    ``[1, token, ...]`` aligned at the last token, or None for zero; ``args["place"]`` says how heads
    write, None for the embedding and MLPs, which write what they give; ``args["writers"]`` is the
    number of this writer and how many there are; ``cache`` keeps what every head writes.
    """
    place, circuits = args["place"], args["circuits"]
    state["to_zero"] = args["value"] is None
    own = wide(x)
    if place is not None:
        own = scaled(state["model"], own, place)
        bias = module_at(state["model"], place["output"]).bias
        if bias is not None:
            before = state.get("biases")
            bias = wide(bias.detach())
            state["biases"] = bias if before is None else before.to(bias.device) + bias
    own = own.unflatten(0, (circuits, -1))  # [circuit, pair, token, ...]
    if args["value"] is None:
        delta = own
    else:
        value = args["value"].to(device=own.device, dtype=own.dtype)
        delta = value[:, -own.shape[2] :] - own
    if place is None:
        difference = delta.flatten(1)[:, None]  # [circuit, writer, pair * token * d_model]
        z = None
    else:
        z = delta.flatten(1, 2).transpose(1, 2)  # [circuit, head, pair * token, d_head]
        difference = None
        if args["cache"]:
            difference = (z @ head_output(state["model"], place)).flatten(2)
    writers = args["writers"]
    if args["cache"]:
        assert difference is not None
        if "written" not in state:  # the first row is for the residual stream
            state["written"] = difference.new_empty(circuits, 1 + writers[1], difference.shape[-1])
        first = 1 + writers[0]
        state["written"][:, first : first + difference.shape[1]] = difference
    else:
        entry = {"first": writers[0], "difference": difference, "z": z, "place": place}
        state.setdefault("parts", []).append(entry)
    return x


def with_written(stream: torch.Tensor, summed: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """``[circuit, 1, vector]`` plus the writers' differences that each reader is to add.

    ``summed`` is ``[circuit, reader, writer]``; the result ``[circuit, reader, vector]``.
    """
    weights = summed.to(device=stream.device, dtype=stream.dtype)
    if "written" in state:
        written = state["written"]  # on the device of the first block
        written[:, :1] = stream
        weights = torch.cat((torch.ones_like(weights[:, :, :1]), weights), dim=2)
        return (weights.to(written.device) @ written[:, : weights.shape[2]]).to(stream.device)
    out = stream.repeat(1, weights.shape[1], 1)
    for entry in state["parts"]:
        difference = entry["difference"]
        if entry["first"] >= weights.shape[2]:
            break
        if difference is None:  # made anew for each layer of readers: it is the largest thing here
            difference = (entry["z"] @ head_output(state["model"], entry["place"])).flatten(2)
        stop = entry["first"] + difference.shape[1]
        out.baddbmm_(weights[:, :, entry["first"] : stop], difference.to(out.device))
    return out


def readings(excluded: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
    """What each reader reads: the residual stream with the excluded edges' values replaced.

    Parameters
    ----------
    excluded : torch.Tensor
        ``[circuit, reader, writer]`` bool, over the writers that these readers see.
    state : dict
        Of this pass.

    Returns
    -------
    torch.Tensor
        ``[circuit, reader, pair * token, d_model]``.
    """
    residual = state["residual"]
    d_model = residual.shape[-1]
    summed = excluded
    if state["to_zero"]:
        # summed up from what is left: what a difference leaves of a stream of zeros is rounding noise,
        # and a norm would blow it up
        residual = torch.zeros_like(residual)
        if state["unwritten"] is not None:
            residual = residual + state["unwritten"].to(residual.device)
        summed = ~excluded
    stream = residual.reshape(len(excluded), 1, -1)
    return with_written(stream, summed, state).unflatten(-1, (-1, d_model))


def read_heads(x: torch.Tensor, args: dict[str, Any], state: dict[str, Any]) -> torch.Tensor:
    """Queries, keys or values that the readers of this layer compute from what they read.

    ``args["excluded"]`` holds all readers of the layer's attention and comes with the first of the
    three; ``args["readers"]`` is this one's part of them.
    """
    if args["excluded"] is not None:
        state["seen"] = None
        if bool(args["excluded"].any()):
            state["seen"] = readings(args["excluded"], state)
            state["spread"] = spread(state["seen"], args["norm"])
    if state["seen"] is None:
        return x
    weight, bias = projection(state["model"], args["projection"])
    start, stop = args["readers"]
    part = state["seen"][:, start:stop]
    mean, scale = (None if s is None else s[:, start:stop] for s in state["spread"])
    out = normed_product(state["model"], part, mean, scale, weight, args["norm"])
    if bias is not None:
        out = out + bias[:, None]
    return out.transpose(1, 2).reshape(x.shape).to(x.dtype)


def spread(
    x: torch.Tensor, norm: dict[str, Any] | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What a norm subtracts from each vector and multiplies it by, ``[..., 1]``."""
    if norm is None:
        return None, None
    if norm["kind"] == "layer":
        variance, mean = torch.var_mean(x, dim=-1, keepdim=True, correction=0)
        return mean, torch.rsqrt(variance + norm["epsilon"])
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).pow(2) / x.shape[-1]
    return None, torch.rsqrt(square + norm["epsilon"])


def normed_product(
    model: Any,
    x: torch.Tensor,
    mean: torch.Tensor | None,
    scale: torch.Tensor | None,
    weight: torch.Tensor,
    norm: dict[str, Any] | None,
) -> torch.Tensor:
    """``weight @ norm(x)`` without a normed copy of every reader's stream.

    ``[circuit, head, vector, d_model]`` and ``[head, d_head, d_model]`` to ``[circuit, head, vector,
    d_head]``.
    """
    if norm is None or scale is None:
        return by_circuit(x, weight.transpose(-1, -2))
    gain, shift = gain_and_bias(model, norm, x)
    folded = (weight * gain).transpose(-1, -2)
    out = by_circuit(x, folded)
    if mean is not None:
        out = out - mean * folded.sum(-2, keepdim=True)
    out = out * scale
    if shift is not None:
        out = out + (weight @ shift)[:, None]
    return out


def by_circuit(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """``x[c] @ weight`` for each circuit: in one product torch would copy ``x`` first."""
    return torch.stack([part @ weight for part in x])


def read_stream(x: torch.Tensor, args: dict[str, Any], state: dict[str, Any]) -> torch.Tensor:
    """The MLP's input or the final residual stream, from what that one reader reads."""
    if not bool(args["excluded"].any()):
        return x
    seen = readings(args["excluded"], state)[:, 0].reshape(x.shape)
    return through_norm(state["model"], args["norm"], seen).to(x.dtype)
