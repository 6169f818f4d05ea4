"""What an intervention does to the value of a site."""

from __future__ import annotations

from typing import Any

import torch

from refusal_nn.shipped.parts import wide
from refusal_nn.shipped.plans import mapped
from refusal_nn.shipped.reductions import gather


def apply_at(
    x: torch.Tensor, name: str, args: dict[str, Any], state: dict[str, Any]
) -> torch.Tensor:
    """Apply an operation to the chosen token positions and heads of ``x``; the rest is unchanged.

    ``args["index"]`` is ``[row, p]`` token indices or None for every token; ``args["heads"]`` a
    list of heads or None. A position may also be given from the end of the prompt on the prompt's
    own pass only, so operations with an index always carry ``when="prompt"``. ``args["rows"]``, where
    there is one, lists the rows to change; ``index`` and other tensors then have those rows only.
    ``args["pick"]`` says which row of the operation's tensor each of them takes.
    """
    if args.get("pick") is not None:
        picked = {k: v[args["pick"]] for k, v in args.items() if k in ("direction", "value")}
        args = {**args, **picked, "pick": None}
    if args.get("rows") is not None:
        out = x.clone()
        out[args["rows"]] = apply_at(x[args["rows"]], name, {**args, "rows": None}, state)
        return out
    index, heads = args["index"], args["heads"]
    part = x if index is None else gather(x, index)
    if heads is None:
        edited = operate(part, name, args)
    else:
        edited = part.clone()
        edited[..., heads, :] = operate(part[..., heads, :], name, args)
    if index is None:
        return edited
    out = x.clone()
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    out[rows, index.to(x.device)] = edited.to(x.dtype)
    return out


def operate(x: torch.Tensor, name: str, args: dict[str, Any]) -> torch.Tensor:
    """One named operation on ``x`` of ``[row, token, ..., d]``, in ``x``'s dtype.

    Half precision is computed in float32: a projection in bfloat16 on a residual stream with norms
    in the thousands is worse than no intervention.
    """
    if name == "branch":
        return x.view_as(x)
    if name == "call":
        return call(x, args)
    y = wide(x)
    given = {k: v.to(y) for k, v in args.items() if k in ("direction", "value", "fraction")}
    if name == "ablate":
        out = ablate(y, given["direction"])
    elif name == "add":
        out = y + row_shaped(given["direction"], y)
    elif name == "set":
        out = row_shaped(given["value"], y).expand_as(y)
    elif name == "swap":
        # [row, token, (head,) 1] flags: where they are set, the value of another run
        out = torch.where(args["mask"].to(y.device).bool(), given["value"], y)
    elif name == "interpolate":  # [row] fractions of the way to a value
        part = given["fraction"].reshape(-1, *([1] * (y.dim() - 1)))
        out = y + part * (given["value"] - y)
    elif name == "contiguous":
        out = y.contiguous()
    elif name == "leaf":  # a server freezes the parameters, so a graph has to begin somewhere
        out = y.detach().clone().requires_grad_(True)
    else:
        raise ValueError(f"unknown operation {name!r}")
    return out.to(x.dtype)


def call(x: torch.Tensor, args: dict[str, Any]) -> torch.Tensor:
    """What a function of the user's makes of ``x``: ``args["function"]`` of it and ``args["args"]``.

    Of a copy, because it may write into what it is given.
    """
    given = {name: beside(value, x) for name, value in args["args"].items()}
    out = args["function"](x.clone(), **given)
    if not isinstance(out, torch.Tensor) or out.shape != x.shape:
        got = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(
            f"function {args['name']} must return a tensor of shape {list(x.shape)}, as it is given, "
            f"but returned {got}"
        )
    return out.to(device=x.device, dtype=x.dtype)


def beside(value: Any, x: torch.Tensor) -> Any:
    """Plain data with its tensors on the device of ``x``, those of floats in its dtype."""

    def moved(v: Any) -> Any:
        if not isinstance(v, torch.Tensor):
            return v
        return v.to(device=x.device, dtype=x.dtype if v.is_floating_point() else v.dtype)

    return mapped(value, moved)


def row_shaped(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A ``[d]`` or ``[row, d]`` vector broadcast over everything between row and ``d`` of ``x``."""
    if vector.dim() == 2 and x.dim() > 2:
        return vector.reshape(vector.shape[0], *([1] * (x.dim() - 2)), vector.shape[1])
    return vector


def ablate(x: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """``x - (x . r) r`` for a unit vector ``[d]``, or one per row ``[row, d]``."""
    if unit.dim() == 1:
        return torch.addcmul(x, (x @ unit)[..., None], unit, value=-1)
    flat = x.flatten(1, -2) if x.dim() > 3 else x
    projection = flat @ unit[:, :, None]
    return torch.baddbmm(flat, projection, unit[:, None, :], alpha=-1).reshape(x.shape)
