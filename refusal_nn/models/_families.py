"""Families of decoders as rows of data: where each keeps its parts.

A row is one layout of the module tree, with the model types that have it. A model is read by the
row that names its type; where none does, by the row that fits it and names the most parts, and the
first trace measures whether that guess holds. A package adds a row by an entry point of group
``refusal_nn.families`` that names a :class:`Family`; such rows are loaded for models that no row
here names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from refusal_nn.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

GROUP = "refusal_nn.families"
_log = logging.getLogger(__name__)

# in the order they are looked for, with their names in messages
_PARTS = {
    "blocks": "blocks",
    "attention": "attention module",
    "output": "attention output projection",
    "qkv": "query projection",
    "mlp": "MLP",
    "attn_norm": "norm before its attention",
    "mlp_norm": "norm before its MLP",
    "attn_post_norm": "norm behind its attention",
    "mlp_post_norm": "norm behind its MLP",
    "embed": "token embedding",
    "final_norm": "final norm",
    "head": "output head",
}


@dataclass(frozen=True)
class Family:
    """One layout of a decoder: a row of the table of families.

    Parameters
    ----------
    models : mapping of str to str
        Model types (``config.model_type``) or names of model classes that have this layout, each
        with what it is called in messages.
    decoder : tuple of str
        Where the decoder is, from the model's root: the first of these that is there.
    blocks, embed, final_norm : str
        Below the decoder: the list of blocks, the token embedding, the norm behind the last block.
    head : str
        The output head, from the model's root.
    attention, mlp : str
        Below a block.
    qkv : tuple of str
        Below attention: the projections that make queries, keys and values, in this order, or the
        one that makes all three.
    interleaved : bool
        One projection's output is query, key and value of the first head, then of the second, and
        so on; otherwise all queries, all keys, all values.
    output : str
        Below attention: its output projection, whose input is ``z``.
    attn_norm, mlp_norm : str or None
        Below a block: the norms in front of attention and MLP. None where they read the residual
        stream itself.
    attn_post_norm, mlp_post_norm : str or None
        Below a block: norms between what attention and MLP compute and the residual stream.
    parallel : bool or str
        Attention and MLP read the same residual stream. A name is that of the config's flag.

    Raises
    ------
    ModelError
        If ``qkv`` names neither one nor three projections, three are said to be interleaved, or
        ``models`` is no mapping.

    Examples
    --------
    >>> Family(models={"my_decoder": "My decoder"}, attention="mixer").output
    'o_proj'
    """

    models: Mapping[str, str] = field(default_factory=dict)
    decoder: tuple[str, ...] = ("model", "model.language_model")
    blocks: str = "layers"
    embed: str = "embed_tokens"
    final_norm: str = "norm"
    head: str = "lm_head"
    attention: str = "self_attn"
    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    interleaved: bool = False
    output: str = "o_proj"
    mlp: str = "mlp"
    attn_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attn_post_norm: str | None = None
    mlp_post_norm: str | None = None
    parallel: bool | str = False

    def __post_init__(self) -> None:
        if not isinstance(self.models, Mapping):
            raise ModelError(f"a family's models map types to names; got {self.models!r}.")
        if len(self.qkv) not in (1, 3) or (self.interleaved and len(self.qkv) == 3):
            raise ModelError(
                f"a family's qkv names three projections, or one (interleaved or not); got {self.qkv}."
            )


_LLAMA = Family(
    models={
        "llama": "Llama",
        "mistral": "Mistral",
        "qwen2": "Qwen2",
        "qwen3": "Qwen3",
        "qwen3_moe": "Qwen3-MoE",
    }
)
_GEMMA = Family(
    models={
        "gemma2": "Gemma 2",
        "gemma3": "Gemma 3",
        "gemma3_text": "Gemma 3",
    },
    mlp_norm="pre_feedforward_layernorm",
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)
_OLMO2 = replace(_GEMMA, models={"olmo2": "OLMo 2"}, attn_norm=None, mlp_norm=None)
_PHI = Family(
    models={"phi": "Phi"},
    output="dense",
    mlp_norm="input_layernorm",
    final_norm="final_layernorm",
    parallel=True,
)
_PHI3 = Family(models={"phi3": "Phi-3"}, qkv=("qkv_proj",))
_GPT2 = Family(
    models={"gpt2": "GPT-2"},
    decoder=("transformer",),
    blocks="h",
    embed="wte",
    final_norm="ln_f",
    attention="attn",
    qkv=("c_attn",),
    output="c_proj",
    attn_norm="ln_1",
    mlp_norm="ln_2",
)
_NEOX = Family(
    models={"gpt_neox": "GPT-NeoX"},
    decoder=("gpt_neox",),
    embed="embed_in",
    final_norm="final_layer_norm",
    attention="attention",
    qkv=("query_key_value",),
    interleaved=True,
    output="dense",
    parallel="use_parallel_residual",
)
FAMILIES = (_LLAMA, _GEMMA, _OLMO2, _PHI, _PHI3, _GPT2, _NEOX)
"""Rows of the supported families."""

LOOK_ALIKES = (
    replace(_NEOX, models={}, head="embed_out"),
    replace(_LLAMA, models={}, qkv=("q_b_proj", "k_proj", "v_proj")),
    Family(mlp_norm="input_layernorm", parallel=True),
    Family(mlp_norm="pre_feedforward_layernorm"),
    Family(
        qkv=("query_key_value",),
        interleaved=True,
        output="dense",
        final_norm="final_layernorm",
    ),
)
"""Rows that we promise for no model: older GPT-NeoX, and the layouts of DeepSeek (its latent
attention has no ``k`` and ``v``), Cohere, VaultGemma and Persimmon."""


def registered() -> Iterator[Family]:
    """Rows of other packages; one that cannot be loaded costs a sentence in the log."""
    for point in entry_points(group=GROUP):
        try:
            row = point.load()
            if not isinstance(row, Family):
                raise TypeError(f"it names a {type(row).__name__}, not a refusal_nn.models.Family")
        except Exception as error:  # whatever a package does when it is imported
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            _log.warning(
                "the model family %r (%s) is left out: %s; mend or uninstall its package.",
                *(point.name, point.value, reason),
            )
        else:
            yield row


def find_family(module: nn.Module) -> tuple[Family, str]:
    """The row that describes a model, and the path of its decoder.

    Raises
    ------
    ModelError
        If no row fits; the message names the first part that is where no row keeps it.
    """
    config: Any = module.config
    types = {type(module).__name__, config.model_type, text_config(config).model_type}

    def named(row: Family) -> bool:
        return not types.isdisjoint(row.models)

    rows = tuple(row for row in FAMILIES if named(row))
    fit = [row for row in rows if _missing(module, row) is None]
    if not fit:
        rows = (*FAMILIES, *registered(), *LOOK_ALIKES)
        fit = [row for row in rows if _missing(module, row) is None]
    if not fit:
        raise ModelError(_refusal(module, rows))
    row = max(fit, key=lambda row: (named(row), len(set(_paths(row, "").values()))))
    return row, str(_decoder(module, row))


def text_config(config: Any) -> Any:
    """The configuration of the language model, where a model has other parts beside it."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def class_family(module: nn.Module) -> str:
    """What a model's class calls its family."""
    return type(module).__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")


def module_at(root: Any, path: str) -> Any:
    """The module at a dotted path, or None; numbers index lists of modules."""
    for name in path.split("."):
        root = getattr(root, name, None)
    return root


def _name(row: Family, part: str) -> str | None:
    # queries alone: in latent attention keys and values have no projection of their own
    name: str | None = row.qkv[0] if part == "qkv" else getattr(row, part)
    return name


def _paths(row: Family, decoder: str) -> dict[str, str]:
    """Where a row says its parts are, from the model's root."""
    block = f"{decoder}.{row.blocks}.0."
    below = dict.fromkeys(("blocks", "embed", "final_norm"), f"{decoder}.") | {"head": ""}
    below |= dict.fromkeys(("qkv", "output"), f"{block}{row.attention}.")
    names = {part: _name(row, part) for part in _PARTS}
    return {part: f"{below.get(part, block)}{name}" for part, name in names.items() if name}


def _decoder(module: nn.Module, row: Family) -> str | None:
    return next((d for d in row.decoder if module_at(module, f"{d}.{row.blocks}")), None)


def _missing(module: nn.Module, row: Family) -> str | None:
    """The first part that is not where the row says, if there is one."""
    decoder = _decoder(module, row)
    if decoder is None:
        return "blocks"
    paths = _paths(row, decoder).items()
    return next((part for part, path in paths if module_at(module, path) is None), None)


def _refusal(module: nn.Module, rows: Sequence[Family]) -> str:
    """Why no row fits: what the rows that come nearest miss."""
    order = list(_PARTS)
    part = max((str(_missing(module, row)) for row in rows), key=order.index)
    if part == "blocks":
        places = dict.fromkeys(f"{d}.{row.blocks}" for row in rows for d in row.decoder)
        said = f"{type(module).__name__} keeps its blocks at none of {', '.join(places)}"
    else:
        names = dict.fromkeys(name for row in rows if (name := _name(row, part)))
        said = f"{class_family(module)}: no {_PARTS[part]} named {' or '.join(names)}"
    known = dict.fromkeys(name for row in rows for name in row.models.values())
    return f"{said}; supported families are {', '.join(known)}."
