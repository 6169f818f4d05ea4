"""A circuit run in plain PyTorch: one pair, one circuit, one reader and one edge at a time.

Written from the definition, against modules that nnsight has never touched: a reader reads the sum of
what its writers give it, the circuit run's own value along edges in the circuit and the ablated run's
along the others, plus what no writer writes (the biases of output projections).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

NORMS = {"gpt2": ("ln_1", "ln_2"), "olmo2": (None, None), "phi": ("input_layernorm",) * 2}
MLP_NORM = {"gemma2": "pre_feedforward_layernorm", "gemma3": "pre_feedforward_layernorm"}
ATTENTION = {"gpt2": "attn", "neox": "attention", "neox_sequential": "attention"}
OUTPUT = {"gpt2": "c_proj", "neox": "dense", "neox_sequential": "dense", "phi": "dense"}
SANDWICH = ("gemma2", "gemma3", "olmo2")


class Reference:
    """Runs of one model with chosen values along chosen edges."""

    def __init__(self, family: str, module: torch.nn.Module) -> None:
        self.family, self.module = family, module
        config = module.config
        self.heads = config.num_attention_heads
        self.kv = getattr(config, "num_key_value_heads", None) or self.heads
        self.d_head = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        base = module.base_model
        self.blocks = base.h if family == "gpt2" else base.layers
        self.parallel = family in ("phi", "neox")

    def norms(self, block: torch.nn.Module) -> tuple[Callable, Callable]:
        first, second = NORMS.get(
            self.family,
            ("input_layernorm", MLP_NORM.get(self.family, "post_attention_layernorm")),
        )
        return tuple(_plain(getattr(block, n)) if n else (lambda x: x) for n in (first, second))

    def attention(self, block: torch.nn.Module) -> torch.nn.Module:
        return getattr(block, ATTENTION.get(self.family, "self_attn"))

    def head_values(self, block: torch.nn.Module, z: torch.Tensor) -> torch.Tensor:
        """``[head, token, d_model]`` from the output projection's input ``[token, head * d_head]``."""
        out = getattr(self.attention(block), OUTPUT.get(self.family, "o_proj"))
        weight = out.weight if self.family == "gpt2" else out.weight.T
        parts = torch.stack(
            [
                z[:, h * self.d_head : (h + 1) * self.d_head]
                @ weight[h * self.d_head : (h + 1) * self.d_head]
                for h in range(self.heads)
            ]
        )
        if self.family in SANDWICH:
            norm = block.post_attention_layernorm
            eps = getattr(norm, "eps", None) or norm.variance_epsilon
            gain = norm.weight + 1 if self.family.startswith("gemma") else norm.weight
            parts = parts * gain / (parts.sum(0).pow(2).mean(-1, keepdim=True) + eps).sqrt()
        return parts

    def projected(self, block: torch.nn.Module, part: str, head: int, x: torch.Tensor):
        """One head's queries, keys or values, ``[token, d_head]``."""
        attention, d, at = self.attention(block), self.d_head, "qkv".index(part)
        if self.family == "gpt2":
            start = at * self.heads * d + head * d
            linear = attention.c_attn
            return x @ linear.weight[:, start : start + d] + linear.bias[start : start + d]
        if self.family in ("neox", "neox_sequential"):
            linear, start = attention.query_key_value, (3 * head + at) * d
        elif self.family == "phi3":
            start = (0, self.heads, self.heads + self.kv)[at] * d + head * d
            linear = attention.qkv_proj
        else:
            linear, start = getattr(attention, f"{part}_proj"), head * d
        out = x @ linear.weight[start : start + d].T
        return out if linear.bias is None else out + linear.bias[start : start + d]

    def run(
        self,
        ids: list[int],
        kept: Callable[[str, str], bool] = lambda src, dst: True,
        ablated: Mapping[str, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Last logits, and what every writer wrote."""
        values: dict[str, torch.Tensor] = {}
        state: dict[str, torch.Tensor] = {}
        handles = []

        def reads(dst: str) -> torch.Tensor:
            x = state["rest"]
            for src in state["seen"]:
                x = x + (values[src] if kept(src, dst) else ablated[src])
            return x

        def watch(layer: int, block: torch.nn.Module) -> None:
            before_attention, before_mlp = self.norms(block)
            attention = self.attention(block)

            def at_block(_m, args, kwargs):
                x = args[0] if args else kwargs["hidden_states"]
                if layer == 0:
                    values["input"] = x[0].clone()
                    state["bias"] = torch.zeros_like(x[0])
                state["rest"], state["seen"] = state["bias"], list(values)

            def at_projection(parts):
                def hook(_m, _args, out):
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
                    if self.family in ("neox", "neox_sequential"):
                        flat = [columns[p][h] for h in range(self.heads) for p in range(3)]
                    else:
                        flat = [x for column in columns for x in column]
                    return torch.cat(flat, -1)[None].to(out.dtype)

                return hook

            def at_output(_m, args):
                for h, value in enumerate(self.head_values(block, args[0][0])):
                    values[f"a{layer}.h{h}"] = value
                if getattr(out, "bias", None) is not None:
                    state["bias"] = state["bias"] + out.bias

            def at_attention_end(_m, _args, _out):
                if not self.parallel:
                    state["rest"], state["seen"] = state["bias"], list(values)

            def at_mlp(_m, args):
                if ablated is not None:
                    return (before_mlp(reads(f"m{layer}"))[None],)
                return None

            def at_mlp_end(_m, _args, out):
                values[f"m{layer}"] = out[0].clone()

            def at_block_end(_m, _args, _out):
                if layer + 1 < len(self.blocks) or ablated is None:
                    return None
                state["rest"], state["seen"] = state["bias"], list(values)
                return reads("logits")[None]

            counts = (("q", self.heads), ("k", self.kv), ("v", self.kv))
            fused = {"gpt2": "c_attn", "phi3": "qkv_proj"}.get(
                self.family, "query_key_value" if self.family.startswith("neox") else None
            )
            out = getattr(attention, OUTPUT.get(self.family, "o_proj"))
            sandwich = self.family in SANDWICH
            handles.append(block.register_forward_pre_hook(at_block, with_kwargs=True))
            if fused:
                module = getattr(attention, fused)
                handles.append(module.register_forward_hook(at_projection(counts)))
            else:
                for count in counts:
                    module = getattr(attention, f"{count[0]}_proj")
                    handles.append(module.register_forward_hook(at_projection([count])))
            handles.append(out.register_forward_pre_hook(at_output))
            ends = block.post_attention_layernorm if sandwich else out
            handles.append(ends.register_forward_hook(at_attention_end))
            handles.append(block.mlp.register_forward_pre_hook(at_mlp))
            ends = block.post_feedforward_layernorm if sandwich else block.mlp
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


def _plain(module: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A module's own computation, its hooks left out."""
    return module.forward
