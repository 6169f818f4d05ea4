"""Where the parts of a decoder are: named sites mapped to places in the module tree.

A *site* is a named tensor of the forward pass. The map says for each one which module it belongs to
(a dotted path below the block), whether it is that module's input or output, and which slice of it
is meant, so that everything else speaks of ``attn_out`` whatever the family calls its modules.

``attn_out`` and ``mlp_out`` are what is *written to the residual stream*: after the post-norm where
a model has one (Gemma 2 and 3, OLMo 2). The map is built from the module tree and the config, and
:func:`residual_error` measures that ``resid_post = resid_pre + attn_out + mlp_out`` holds on it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from refusal_nn.errors import ModelError
from refusal_nn.models._families import Family, class_family, find_family, module_at, text_config

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Place:
    """One site's place: ``path`` below the block (or model), ``io``, and the slice of it.

    ``view`` is None for the whole tensor, ``("slice", start, stop)`` for a contiguous part of the
    last axis, or ``("interleaved", index)`` for GPT-NeoX's per-head q|k|v layout.
    ``heads`` is the number of heads the last axis splits into, 0 for none.
    """

    path: str
    io: str
    view: tuple[Any, ...] | None = None
    heads: int = 0


@dataclass(frozen=True)
class Architecture:
    """The map of one model. Sizes are plain ints; ``places`` is in execution order.

    ``attn_norm`` and ``mlp_norm`` are the norms in front of attention and MLP, below the block; None
    where they read the residual stream itself.
    """

    family: str
    layers: str
    embed: str
    final_norm: str
    head: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    vocab_size: int
    parallel: bool
    places: dict[str, Place] = field(default_factory=dict)
    attn_norm: str | None = None
    mlp_norm: str | None = None

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites this model has, in execution order."""
        return ("embed", *self.places, "final_norm", "logits")

    def block(self, layer: int) -> str:
        """Dotted path of block ``layer``."""
        return f"{self.layers}.{layer}"

    def place(self, site: str) -> Place:
        """The place of a block site.

        Raises
        ------
        ModelError
            If the model has no such site (``resid_mid`` in a parallel block).
        """
        try:
            return self.places[site]
        except KeyError:
            reason = (
                "its attention and MLP run in parallel, so nothing stands between them"
                if site == "resid_mid" and self.parallel
                else f"sites are {', '.join(self.sites)}"
            )
            raise ModelError(f"this {self.family} model has no site {site!r}: {reason}.") from None


def build_architecture(module: nn.Module) -> Architecture:
    """Map a causal language model (on any device, meta included).

    Parameters
    ----------
    module : torch.nn.Module
        A ``transformers`` causal language model.

    Raises
    ------
    ModelError
        If the module tree is not one of the layouts we know; the message names what is missing.
    """
    row, decoder = find_family(module)
    text = text_config(module.config)
    n_heads = int(text.num_attention_heads)
    d_model = int(text.hidden_size)
    d_head = int(getattr(text, "head_dim", None) or d_model // n_heads)
    n_kv = int(getattr(text, "num_key_value_heads", None) or n_heads)
    parallel = row.parallel
    if isinstance(parallel, str):
        if not hasattr(text, parallel):
            raise ModelError(f"the config of this {class_family(module)} model has no {parallel}.")
        parallel = bool(getattr(text, parallel))
    output = f"{row.attention}.{row.output}"
    middle = {} if parallel else {"resid_mid": Place(row.mlp_norm or row.mlp, "input")}
    return Architecture(
        family=class_family(module),
        layers=f"{decoder}.{row.blocks}",
        embed=f"{decoder}.{row.embed}",
        final_norm=f"{decoder}.{row.final_norm}",
        head=row.head,
        n_layers=len(module_at(module, f"{decoder}.{row.blocks}")),
        n_heads=n_heads,
        n_kv_heads=n_kv,
        d_head=d_head,
        d_model=d_model,
        vocab_size=int(text.vocab_size),
        parallel=parallel,
        places={
            "resid_pre": Place("", "input"),
            "attn_in": Place(row.attention, "input"),
            **_qkv_places(row, {"q": n_heads, "k": n_kv, "v": n_kv}, d_head),
            "z": Place(output, "input", heads=n_heads),
            "attn_out": Place(row.attn_post_norm or output, "output"),
            **middle,
            "mlp_in": Place(row.mlp, "input"),
            "mlp_out": Place(row.mlp_post_norm or row.mlp, "output"),
            "resid_post": Place("", "output"),
        },
        attn_norm=row.attn_norm,
        mlp_norm=row.mlp_norm,
    )


def _qkv_places(row: Family, heads: dict[str, int], d_head: int) -> dict[str, Place]:
    paths = [f"{row.attention}.{name}" for name in row.qkv]
    if len(paths) == 3:
        return {
            s: Place(path, "output", heads=heads[s]) for s, path in zip(heads, paths, strict=True)
        }
    places, start = {}, 0
    for i, (site, n) in enumerate(heads.items()):
        stop = start + n * d_head
        view = ("interleaved", i) if row.interleaved else ("slice", start, stop)
        places[site] = Place(paths[0], "output", view, heads=n)
        start = stop
    return places
