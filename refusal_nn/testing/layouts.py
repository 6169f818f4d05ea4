"""Where the tiny models keep their parts, written by hand.

The oracles here read these instead of :class:`refusal_nn.models.Architecture`, which they test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

Part = slice | int | None
"""Of a projection's output: columns, GPT-NeoX's index of q, k or v in a head, or all of it."""


@dataclass(frozen=True)
class Layout:
    """Module paths of one family.

    Parameters
    ----------
    blocks, embed, final_norm : str
        From the model's root.
    attention, out : str
        Below a block: the attention module and its output projection.
    fused : str or None
        Below attention: the projection that makes queries, keys and values, where there is one.
    interleaved : bool
        Its output is query, key and value of one head after the other.
    n_kv_heads : int
        Key-value heads of the tiny model, whose heads are eight wide.
    attn_norm, mlp_norm : str or None
        Below a block: the norms in front of attention and MLP.
    attn_post, mlp_post : str or None
        Below a block: the norms behind them.
    parallel : bool
        Attention and MLP read the same residual stream.
    plus_one : bool
        Norms store their weight less 1.
    transposed : bool
        Projections keep their weight as ``[in, out]``.
    """

    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    attention: str = "self_attn"
    out: str = "self_attn.o_proj"
    fused: str | None = None
    interleaved: bool = False
    n_kv_heads: int = 2
    attn_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attn_post: str | None = None
    mlp_post: str | None = None
    parallel: bool = False
    plus_one: bool = False
    transposed: bool = False

    @property
    def attn_write(self) -> str:
        """The module whose output attention adds to the residual stream."""
        return self.attn_post or self.out

    @property
    def mlp_write(self) -> str:
        """The module whose output the MLP adds to the residual stream."""
        return self.mlp_post or "mlp"

    @property
    def mid(self) -> str | None:
        """The module that reads the residual stream between attention and MLP."""
        return None if self.parallel else self.mlp_norm or "mlp"

    def projection(self, site: str) -> tuple[str, Part]:
        """Where ``q``, ``k`` or ``v`` is made, below a block, and which part of the output it is."""
        if self.fused is None:
            return f"{self.attention}.{site}_proj", None
        path, at = f"{self.attention}.{self.fused}", "qkv".index(site)
        if self.interleaved:
            return path, at
        ends = (0, 32, 32 + 8 * self.n_kv_heads, 32 + 16 * self.n_kv_heads)
        return path, slice(ends[at], ends[at + 1])


_LLAMA = Layout()
_OLMO2 = Layout(
    attn_norm=None,
    mlp_norm=None,
    attn_post="post_attention_layernorm",
    mlp_post="post_feedforward_layernorm",
)
_GEMMA = replace(
    _OLMO2, attn_norm="input_layernorm", mlp_norm="pre_feedforward_layernorm", plus_one=True
)
_NEOX = Layout(
    blocks="gpt_neox.layers",
    embed="gpt_neox.embed_in",
    final_norm="gpt_neox.final_layer_norm",
    attention="attention",
    out="attention.dense",
    fused="query_key_value",
    interleaved=True,
    n_kv_heads=4,
)
LAYOUTS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "qwen3_moe"), _LLAMA),
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "olmo2": _OLMO2,
    "phi": Layout(
        out="self_attn.dense",
        final_norm="model.final_layernorm",
        mlp_norm="input_layernorm",
        parallel=True,
    ),
    "phi3": Layout(fused="qkv_proj"),
    "gpt2": Layout(
        blocks="transformer.h",
        embed="transformer.wte",
        final_norm="transformer.ln_f",
        attention="attn",
        out="attn.c_proj",
        fused="c_attn",
        n_kv_heads=4,
        attn_norm="ln_1",
        mlp_norm="ln_2",
        transposed=True,
    ),
    "neox": replace(_NEOX, parallel=True),
    "neox_sequential": _NEOX,
}
"""By name of the tiny model."""
