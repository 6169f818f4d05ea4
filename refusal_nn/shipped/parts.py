"""The modules of a model, and what their weights mean: heads of projections, gains of norms."""

from __future__ import annotations

from typing import Any

import torch


def resolve(root: Any, path: str) -> Any:
    """The module at a dotted path; digits index into module lists."""
    for part in path.split("."):
        if part:
            root = root[int(part)] if part.isdigit() else getattr(root, part)
    return root


def first(value: Any) -> Any:
    """The tensor of a module value that may be a tuple."""
    return value[0] if isinstance(value, tuple) else value


def put_first(value: Any, x: torch.Tensor) -> Any:
    """``value`` with its tensor replaced by ``x``."""
    return (x, *value[1:]) if isinstance(value, tuple) else x


def module_at(root: Any, path: str) -> Any:
    """The plain module at a dotted path below an nnsight model."""
    return resolve(root, path)._module


def through(module: Any, x: torch.Tensor) -> torch.Tensor:
    """A module's own forward on another tensor, unseen by the trace it happens in."""
    weight = next(module.parameters(), x)
    return type(module).forward(module, x.to(weight.dtype))  # type: ignore[no-any-return]


def through_norm(model: Any, path: str | None, x: torch.Tensor) -> torch.Tensor:
    """``x`` behind the norm at a path; ``x`` itself where there is none."""
    return x if path is None else through(module_at(model, path), x)


def wide(x: torch.Tensor) -> torch.Tensor:
    """Half precision widened: differences of nearly equal activations are what counts here."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def heads_of(
    x: torch.Tensor, view: tuple[Any, ...] | None, heads: int, dim: int = -1
) -> torch.Tensor:
    """The part of an axis that is queries, keys or values, unfolded into heads where there are any.

    Parameters
    ----------
    x : torch.Tensor
        A module's tensor, or the weight or bias of a projection.
    view : tuple or None
        ``("slice", start, stop)``; ``("interleaved", which)``: every head has its query, key and value
        side by side; None: all of the axis.
    heads : int
        0: the axis stays one.
    dim : int
        -1 or 0.
    """
    if view is not None and view[0] == "interleaved":
        return x.unflatten(dim, (heads, 3, -1)).select(-2 if dim else 1, view[1])
    if view is not None:
        x = x.narrow(dim, view[1], view[2] - view[1])
    return x.unflatten(dim, (heads, -1)) if heads else x


def projection(model: Any, place: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight ``[head, d_head, d_model]`` and bias ``[head, d_head]`` of a q, k or v projection."""
    module = module_at(model, place["path"])
    weight = module.weight.T if place["transposed"] else module.weight
    bias = module.bias
    parts = [wide(weight.detach()), None if bias is None else wide(bias.detach())]
    of_heads = [x if x is None else heads_of(x, place["view"], place["heads"], 0) for x in parts]
    return of_heads[0], of_heads[1]  # type: ignore[return-value]


def output_weight(model: Any, place: dict[str, Any]) -> torch.Tensor:
    """Weight ``[head * d_head, d_model]`` of an attention output projection."""
    module = module_at(model, place["output"])
    return wide((module.weight if place["transposed"] else module.weight.T).detach())


def head_output(model: Any, place: dict[str, Any]) -> torch.Tensor:
    """``[head, d_head, d_model]``: what each head's part of z adds, up to the post-norm's scale."""
    weight = output_weight(model, place)
    if place["post_norm"]:
        norm = {"kind": "rms", "epsilon": place["epsilon"]}
        weight = weight * norm_gain(module_at(model, place["post_norm"]), norm)
    return weight.unflatten(0, (place["heads"], -1))


def norm_gain(module: Any, norm: dict[str, Any]) -> torch.Tensor:
    """What a norm multiplies normalised vectors by, ``[d_model]``.

    An RMSNorm is asked rather than read: some families store its weight less 1.
    """
    if norm["kind"] == "layer":
        return wide(module.weight.detach())
    ones = torch.ones_like(module.weight)
    return wide(through(module, ones).detach()) * (1 + norm["epsilon"]) ** 0.5


def scaled(model: Any, z: torch.Tensor, place: dict[str, Any]) -> torch.Tensor:
    """``z`` over the root mean square that the norm behind the output projection divides by."""
    if not place["post_norm"]:
        return z
    total = z.flatten(-2) @ output_weight(model, place)
    return z * torch.rsqrt(total.pow(2).mean(-1) + place["epsilon"])[..., None, None]


def gain_and_bias(model: Any, norm: dict[str, Any], like: torch.Tensor) -> tuple[Any, Any]:
    """Gain ``[d_model]`` of a norm, whatever offset it is stored with, and its bias or None."""
    module = module_at(model, norm["path"])
    bias = getattr(module, "bias", None) if norm["kind"] == "layer" else None
    return norm_gain(module, norm).to(like), None if bias is None else wide(bias.detach()).to(like)
