"""Captures, edits and generation by plain PyTorch hooks on plain ``transformers`` modules.

Nothing under test has a part in it: where each family keeps its parts is spelled out by hand
(:mod:`refusal_nn.testing.layouts`), padding and position ids are made here, and generation recomputes
the whole sequence at every step, without a cache. ``module`` is :func:`~refusal_nn.testing.plain_module`
of ``family``.

Examples
--------
>>> from refusal_nn.testing import hooks, plain_module
>>> inputs = hooks.pad_rows([[7, 8, 9], [10, 11]])
>>> found = hooks.everything(plain_module("gpt2"), "gpt2", inputs)
>>> tuple(found["q", 0].shape)
(2, 3, 4, 8)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from refusal_nn.testing.layouts import LAYOUTS

Change = Callable[[Tensor], Tensor]
"""``[row, token, d]`` to the same shape."""


def pad_rows(rows: Sequence[Sequence[int]], side: str = "left") -> dict[str, Tensor]:
    """Token rows padded with 0, with mask and positions: ``[row, token]`` int64 each."""
    width = max(map(len, rows))
    ids, mask, positions = [], [], []
    for row in rows:
        gap = [0] * (width - len(row))
        body, ones, count = list(row), [1] * len(row), list(range(len(row)))
        if side == "left":
            ids.append(gap + body)
            mask.append(gap + ones)
            positions.append(gap + count)
        else:
            ids.append(body + gap)
            mask.append(ones + gap)
            positions.append(count + gap)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "position_ids": torch.tensor(positions),
    }


def at_end(x: Tensor, lengths: Sequence[int], side: str, positions: Sequence[int]) -> Tensor:
    """Values at positions counted from the end of each row's real tokens: ``[row, p, ...]``."""
    width = x.shape[1]
    ends = [width if side == "left" else n for n in lengths]
    return torch.stack([torch.stack([x[i, e + p] for p in positions]) for i, e in enumerate(ends)])


@contextmanager
def hooks(module: nn.Module, changes: Sequence[tuple[str, str, Change]]) -> Iterator[None]:
    """Apply changes: ``(path, "in" or "out", change)``, each on the first tensor there."""
    handles = []
    for path, io, change in changes:
        target = module.get_submodule(path)
        if io == "in":

            def before(_m: nn.Module, args: tuple, kwargs: dict, change: Change = change) -> tuple:
                if args:
                    return (change(args[0]), *args[1:]), kwargs
                return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

            handles.append(target.register_forward_pre_hook(before, with_kwargs=True))
        else:

            def after(_m: nn.Module, _i: tuple, out: Any, change: Change = change) -> object:
                if isinstance(out, tuple):
                    return (change(out[0]), *out[1:])
                return change(out)

            handles.append(target.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def n_blocks(module: nn.Module, family: str) -> int:
    """Number of blocks."""
    blocks: Any = module.get_submodule(LAYOUTS[family].blocks)
    return len(blocks)


def place(family: str, layer: int, site: str) -> tuple[str, str]:
    """Where a whole-width site is: path and side."""
    layout = LAYOUTS[family]
    block = f"{layout.blocks}.{layer}"
    places = {
        "resid_pre": (block, "in"),
        "attn_in": (f"{block}.{layout.attention}", "in"),
        "z": (f"{block}.{layout.out}", "in"),
        "attn_out": (f"{block}.{layout.attn_write}", "out"),
        "mlp_in": (f"{block}.mlp", "in"),
        "mlp_out": (f"{block}.{layout.mlp_write}", "out"),
        "resid_post": (block, "out"),
    }
    if layout.mid:
        places["resid_mid"] = (f"{block}.{layout.mid}", "in")
    return places[site]


def heads_of(family: str, site: str, x: Tensor) -> Tensor:
    """q, k or v with heads unfolded, ``[row, token, head, 8]``, from its module's output."""
    part = LAYOUTS[family].projection(site)[1]
    if isinstance(part, int):  # GPT-NeoX: q, k, v of a head side by side
        return x.unflatten(-1, (4, 24)).chunk(3, dim=-1)[part]
    return (x if part is None else x[..., part]).unflatten(-1, (-1, 8))


def everything(
    module: nn.Module,
    family: str,
    inputs: dict[str, Tensor],
    changes: Sequence[tuple[str, str, Change]] = (),
) -> dict[tuple[str, int], Tensor]:
    """Every site at every token of one pass, ``(site, layer)``; model-wide sites at layer -1.

    Values are ``[row, token, d_model]``; of ``q``, ``k``, ``v``, ``z`` ``[row, token, head, d_head]``;
    of ``logits`` ``[row, token, token id]``.
    """
    layout = LAYOUTS[family]
    found: dict[tuple[str, int], Tensor] = {}

    def take(key: tuple[str, int]) -> Change:
        def record(x: Tensor) -> Tensor:
            found[key] = x.clone()
            return x

        return record

    listen = [(layout.embed, "out", take(("embed", -1)))]
    listen.append((layout.final_norm, "out", take(("final_norm", -1))))
    for layer in range(n_blocks(module, family)):
        for site in ("resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post", "z"):
            listen.append((*place(family, layer, site), take((site, layer))))
        if layout.mid:
            listen.append((*place(family, layer, "resid_mid"), take(("resid_mid", layer))))
        for site in ("q", "k", "v"):
            path = f"{layout.blocks}.{layer}.{layout.projection(site)[0]}"
            listen.append((path, "out", take((site, layer))))
    with torch.no_grad(), hooks(module, [*changes, *listen]):
        found["logits", -1] = module(**inputs, use_cache=False).logits
    for layer in range(n_blocks(module, family)):
        for site in ("q", "k", "v"):
            found[site, layer] = heads_of(family, site, found[site, layer])
        found["z", layer] = found["z", layer].unflatten(-1, (4, 8))
    return found


def remove(direction: Tensor) -> Change:
    """``x - (x . r) r``; a direction that is zero up to rounding removes nothing."""
    unit = direction / direction.norm().clamp(min=1e-8)
    return lambda x: x - (x @ unit)[..., None] * unit


def add(vector: Tensor) -> Change:
    """``x + vector``."""
    return lambda x: x + vector


def put(vector: Tensor) -> Change:
    """``vector`` instead of ``x``."""
    return lambda x: vector.expand_as(x)


def everywhere(module: nn.Module, family: str, change: Change) -> list[tuple[str, str, Change]]:
    """The change at the input of every block and at what attention and MLP write."""
    return [
        (*place(family, layer, site), change)
        for layer in range(n_blocks(module, family))
        for site in ("resid_pre", "attn_out", "mlp_out")
    ]


def greedy(
    module: nn.Module,
    rows: Sequence[Sequence[int]],
    changes: Sequence[tuple[str, str, Change]],
    *,
    n: int,
    eos: int = 2,
) -> list[list[int]]:
    """Greedy continuations of each row on its own, without a cache, up to the end token."""
    out = []
    with torch.no_grad(), hooks(module, changes):
        for row in rows:
            ids = list(row)
            for _ in range(n):
                logits = module(**pad_rows([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
                if ids[-1] == eos:
                    break
            new = ids[len(row) :]
            out.append(new[:-1] if new[-1] == eos else new)
    return out
