"""A circuit run in plain PyTorch: one pair, one circuit, one reader and one edge at a time.

Written from the definition, against modules that nnsight has never touched: a reader reads the sum of
what its writers give it, the circuit run's own value along edges in the circuit and the ablated run's
along the others, plus what no writer writes (the biases of output projections).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from refusal_nn.testing.layouts import LAYOUTS


class CircuitRuns:
    """Runs of one model with chosen values along chosen edges.

    Parameters
    ----------
    family : str
        Name of the tiny model, or of one with the same layout.
    module : nn.Module

    Examples
    --------
    >>> from refusal_nn.testing import plain_module
    >>> runs = CircuitRuns("llama", plain_module("llama"))
    >>> logits, writes = runs.run([7, 8, 9])
    >>> tuple(logits.shape), tuple(writes["a0.h1"].shape)
    ((97,), (3, 32))
    """

    def __init__(self, family: str, module: nn.Module) -> None:
        self.layout, self.module = LAYOUTS[family], module
        config: Any = module.config
        self.heads: int = config.num_attention_heads
        self.kv: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.d_head: int = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        blocks: Any = module.get_submodule(self.layout.blocks)
        self.blocks: list[nn.Module] = list(blocks)

    def norms(self, block: nn.Module) -> tuple[Callable[[Tensor], Tensor], ...]:
        """What stands in front of attention and of the MLP."""
        names = (self.layout.attn_norm, self.layout.mlp_norm)
        # a module's own computation, its hooks left out
        return tuple(block.get_submodule(n).forward if n else (lambda x: x) for n in names)

    def head_values(self, block: nn.Module, z: Tensor) -> Tensor:
        """``[head, token, d_model]`` from the output projection's input ``[token, head * d_head]``."""
        out: Any = block.get_submodule(self.layout.out)
        weight = out.weight if self.layout.transposed else out.weight.T
        parts = torch.stack(
            [
                z[:, h * self.d_head : (h + 1) * self.d_head]
                @ weight[h * self.d_head : (h + 1) * self.d_head]
                for h in range(self.heads)
            ]
        )
        if self.layout.attn_post:
            norm: Any = block.get_submodule(self.layout.attn_post)
            eps = getattr(norm, "eps", None) or norm.variance_epsilon
            gain = norm.weight + 1 if self.layout.plus_one else norm.weight
            parts = parts * gain / (parts.sum(0).pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return parts

    def projected(self, block: nn.Module, part: str, head: int, x: Tensor) -> Tensor:
        """One head's queries, keys or values, ``[token, d_head]``."""
        layout, d, at = self.layout, self.d_head, "qkv".index(part)
        linear: Any = block.get_submodule(layout.projection(part)[0])
        if layout.fused is None:
            start = head * d
        elif layout.interleaved:
            start = (3 * head + at) * d
        else:
            start = (0, self.heads, self.heads + self.kv)[at] * d + head * d
        weight = linear.weight.T if layout.transposed else linear.weight
        out = x @ weight[start : start + d].T
        return out if linear.bias is None else out + linear.bias[start : start + d]

    def run(
        self,
        ids: list[int],
        kept: Callable[[str, str], bool] = lambda src, dst: True,
        ablated: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Last logits ``[token id]``, and what every writer wrote, ``[token, d_model]``.

        Parameters
        ----------
        ids : list of int
            Tokens of one prompt.
        kept : callable
            Whether the edge of a writer and a reader is in the circuit.
        ablated : mapping, optional
            What the other edges carry, by writer; without it the model runs as it is.
        """
        values: dict[str, Tensor] = {}
        state: dict[str, Any] = {}
        handles: list[Any] = []

        def reads(dst: str) -> Tensor:
            x = state["rest"]
            for src in state["seen"]:
                x = x + (values[src] if kept(src, dst) or ablated is None else ablated[src])
            return x

        def watch(layer: int, block: nn.Module) -> None:
            before_attention, before_mlp = self.norms(block)
            sequential = not self.layout.parallel

            def at_block(_m: nn.Module, args: Any, kwargs: Any) -> None:
                x = args[0] if args else kwargs["hidden_states"]
                if layer == 0:
                    values["input"] = x[0].clone()
                    state["bias"] = torch.zeros_like(x[0])
                state["rest"], state["seen"] = state["bias"], list(values)

            def at_projection(parts: Any) -> Callable[..., Tensor | None]:
                def hook(_m: nn.Module, _args: Any, out: Tensor) -> Tensor | None:
                    if ablated is None:
                        return None
                    columns = []
                    for part, heads in parts:
                        columns.append(
                            [
                                self.projected(
                                    block,
                                    part,
                                    h,
                                    before_attention(reads(f"a{layer}.h{h}<{part}>")),
                                )
                                for h in range(heads)
                            ]
                        )
                    if self.layout.interleaved:
                        flat = [columns[p][h] for h in range(self.heads) for p in range(3)]
                    else:
                        flat = [x for column in columns for x in column]
                    return torch.cat(flat, -1)[None].to(out.dtype)

                return hook

            def at_output(_m: nn.Module, args: Any) -> None:
                for h, value in enumerate(self.head_values(block, args[0][0])):
                    values[f"a{layer}.h{h}"] = value
                if getattr(out, "bias", None) is not None:
                    state["bias"] = state["bias"] + out.bias

            def at_attention_end(_m: nn.Module, _args: Any, _out: Any) -> None:
                if sequential:
                    state["rest"], state["seen"] = state["bias"], list(values)

            def at_mlp(_m: nn.Module, args: Any) -> tuple[Tensor] | None:
                if ablated is not None:
                    return (before_mlp(reads(f"m{layer}"))[None],)
                return None

            def at_mlp_end(_m: nn.Module, _args: Any, out: Any) -> None:
                values[f"m{layer}"] = out[0].clone()

            def at_block_end(_m: nn.Module, _args: Any, _out: Any) -> Tensor | None:
                if layer + 1 < len(self.blocks) or ablated is None:
                    return None
                state["rest"], state["seen"] = state["bias"], list(values)
                return reads("logits")[None]

            counts = (("q", self.heads), ("k", self.kv), ("v", self.kv))
            layout = self.layout
            out: Any = block.get_submodule(layout.out)
            handles.append(block.register_forward_pre_hook(at_block, with_kwargs=True))
            for made in [counts] if layout.fused else [[count] for count in counts]:
                module = block.get_submodule(layout.projection(made[0][0])[0])
                handles.append(module.register_forward_hook(at_projection(made)))
            handles.append(out.register_forward_pre_hook(at_output))
            ends = block.get_submodule(layout.attn_write)
            handles.append(ends.register_forward_hook(at_attention_end))
            handles.append(block.get_submodule("mlp").register_forward_pre_hook(at_mlp))
            ends = block.get_submodule(layout.mlp_write)
            handles.append(ends.register_forward_hook(at_mlp_end))
            handles.append(block.register_forward_hook(at_block_end))

        for layer, block in enumerate(self.blocks):
            watch(layer, block)
        try:
            with torch.no_grad():
                logits = self.module(torch.tensor([ids]), use_cache=False).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()
        return logits, values
