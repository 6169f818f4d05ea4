"""Tiny random models of every supported family, wrapped as the library wraps real ones.

Three blocks, width 32, four heads of eight, a vocabulary of 97 words. The weights are those of
``transformers``' own initialisation plus noise of 0.1, so that attention and MLP write something
that matters, biases and norms included.
"""

from __future__ import annotations

from functools import cache

import torch
import transformers
from nnsight.modeling.transformers import TransformersModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from refusal_nn.models import Model, wrap_model

D_MODEL, N_LAYERS, N_HEADS, D_HEAD, VOCABULARY = 32, 3, 4, 8, 97
"""Sizes of the tiny models; their key-value heads are two or four."""
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<|user|>", "<|end|>", "<|assistant|>")
TEMPLATE = "<bos> <|user|> {{ messages[0]['content'] }} <|end|> <|assistant|>"

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "intermediate_size": 48,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GQA = {**_COMMON, "num_key_value_heads": 2}
_WIDE = {**_GQA, "head_dim": D_HEAD}
# shorter than the longest rows of the tests; not for Gemma 2, whose eager attention gives NaN in
# float64 at padding outside the window
_SMALL_WINDOW = {"sliding_window": 6}
_CONFIGS = {
    "llama": ("LlamaConfig", _GQA),
    "mistral": ("MistralConfig", {**_GQA, **_SMALL_WINDOW}),
    "qwen2": ("Qwen2Config", _GQA),
    "qwen3": ("Qwen3Config", _WIDE),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {
            **_WIDE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "decoder_sparse_step": 1,
        },
    ),
    "gemma2": ("Gemma2Config", {**_WIDE, "query_pre_attn_scalar": D_HEAD}),
    "gemma3": ("Gemma3TextConfig", {**_WIDE, **_SMALL_WINDOW, "query_pre_attn_scalar": D_HEAD}),
    "olmo2": ("Olmo2Config", _GQA),
    "phi": ("PhiConfig", _GQA),
    "phi3": ("Phi3Config", _GQA),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": D_MODEL,
            "n_layer": N_LAYERS,
            "n_head": N_HEADS,
            "n_positions": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "neox": ("GPTNeoXConfig", _COMMON),
    "neox_sequential": ("GPTNeoXConfig", {**_COMMON, "use_parallel_residual": False}),
}
FAMILIES = tuple(_CONFIGS)
"""Names of the tiny models: one a family, and GPT-NeoX once parallel and once sequential."""

PARALLEL = ("phi", "neox")
"""Those whose attention and MLP run in parallel."""

SEQUENTIAL = tuple(f for f in FAMILIES if f not in PARALLEL)


def tiny_module(
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    seed: int = 0,
    **config: object,
) -> torch.nn.Module:
    """A random model of a family, in eval mode on the CPU, that nothing else holds.

    Parameters
    ----------
    family : str
        One of :data:`FAMILIES`.
    dtype : torch.dtype
    attention : str, optional
        ``sdpa`` or ``eager``; default the family's own implementation.
    seed : int
        Of the weights.
    **config
        Instead of the options of its configuration.

    Examples
    --------
    >>> tiny_module("gpt2", n_layer=1).config.n_layer
    1
    """
    name, options = _CONFIGS[family]
    built = getattr(transformers, name)(**{**options, **config})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extra = {"attn_implementation": attention} if attention else {}
        if dtype == torch.float64 and family == "qwen3_moe":
            extra["experts_implementation"] = "eager"  # the other kernels have no float64
        module = transformers.AutoModelForCausalLM.from_config(built, **extra)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return module.to(dtype).eval()


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Whole words, split at spaces; ``w7`` to ``w96`` are the ordinary ones."""
    words = {w: i for i, w in enumerate((*SPECIAL, *(f"w{i}" for i in range(7, VOCABULARY))))}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[4:]),
    )
    tokenizer.chat_template = template
    return tokenizer


def wrap(module: torch.nn.Module, *, name: str = "tiny", backend: str = "local") -> Model:
    """A :class:`~refusal_nn.models.Model` around a plain module, with the tiny tokenizer."""
    tokenizer = tiny_tokenizer()
    return wrap_model(
        TransformersModel(module, tokenizer=tokenizer), tokenizer, name=name, backend=backend
    )


@cache
def plain_module(
    family: str, dtype: torch.dtype = torch.float32, attention: str | None = None
) -> torch.nn.Module:
    """The module of :func:`tiny_model` with the same weights, which nnsight has never touched."""
    return tiny_module(family, dtype=dtype, attention=attention)


@cache
def tiny_model(
    family: str,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    backend: str = "local",
) -> Model:
    """A wrapped random model; one for the whole session, since nothing changes it.

    Examples
    --------
    >>> from refusal_nn.tracing import capture_tokens, Capture
    >>> model = tiny_model("phi3")
    >>> model.n_layers, model.d_model
    (3, 32)
    """
    module = tiny_module(family, dtype=dtype, attention=attention)
    return wrap(module, name=f"tiny-{family}", backend=backend)
