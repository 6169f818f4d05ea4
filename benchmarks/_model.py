"""The benchmarked model: GPT-2 small in shape, random in weights, with a chat tokenizer made here.

Random weights hold no refusal, so a sweep over their directions would find nothing admissible. The
initial weights are therefore changed in three ways: the blocks' matrices are scaled by ``GAIN`` and
the final norm by ``SHARPNESS``, so that an instruction matters to the next-token distribution as much
as in a trained model, and the embeddings of the harmful verbs share a random component of ``PLANTED``
times an embedding's size. None of this changes what a pass costs.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from refusal_nn.models import Model, wrap_model
from refusal_nn.prompts import Prompts

GAIN = 2.0
SHARPNESS = 4.5
PLANTED = 4.0
SIZES = {
    "gpt2-small": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
    "deep": {"n_layer": 48, "n_embd": 64, "n_head": 16, "vocab_size": 2000},
    "half-deep": {"n_layer": 12, "n_embd": 64, "n_head": 16, "vocab_size": 2000},
    "quick": {"n_layer": 5, "n_embd": 256, "n_head": 4, "vocab_size": 2000},
}
SEEDS = {"gpt2-small": 0, "deep": 0, "half-deep": 0, "quick": 20}
"""Of the weights: the first for which 3 to 25 % of the candidates are admissible."""
VERBS = {
    "harmful": (
        *("attack", "burn", "crash", "forge", "hack", "poison"),
        *("rob", "sabotage", "smuggle", "steal", "threaten", "wreck"),
    ),
    "harmless": (
        *("admire", "bake", "clean", "draw", "fold", "garden"),
        *("mend", "paint", "plant", "polish", "sew", "water"),
    ),
}
OBJECTS = ("a", "the", "my", "one old", "some new", "this small", "that large")
NOUNS = (
    *("boat", "bridge", "cake", "car", "chair", "door", "fence"),
    *("garden", "house", "lamp", "shirt", "table", "tower", "wall"),
)
FRAMES = (
    "how do i {} ?",
    "tell me how to {} .",
    "explain how people {} today .",
    "steps to {} please",
)
SPECIAL = ["<s>", "<end>", "<turn>", "<model>", "<think>", "<say>", "<pad>", "<unk>"]
TEMPLATE = (
    "{% for m in messages %}<s> {{ m['content'] | trim }} {% endfor %}"
    "<end> <turn> <model> <think> <say>"
)


def make_model(size: str = "gpt2-small", *, seed: int | None = None) -> Model:
    """The model, wrapped as any other; eval mode, float32, CPU.

    Parameters
    ----------
    size : str
        One of :data:`SIZES`.
    seed : int, optional
        Of the weights; default the one of :data:`SEEDS`.
    """
    from nnsight.modeling.transformers import TransformersModel
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer()
    torch.manual_seed(SEEDS[size] if seed is None else seed)
    config = GPT2Config(
        **SIZES[size],
        n_positions=256,
        initializer_range=0.02 * (768 / SIZES[size]["n_embd"]) ** 0.5,  # logits of equal spread
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    module = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for block in module.transformer.h:
            for projection in (
                block.attn.c_attn,
                block.attn.c_proj,
                block.mlp.c_fc,
                block.mlp.c_proj,
            ):
                projection.weight *= GAIN
        module.transformer.ln_f.weight *= SHARPNESS
        embeddings = module.transformer.wte.weight
        shared = torch.randn(embeddings.shape[1]) * config.initializer_range * PLANTED
        embeddings[tokenizer.convert_tokens_to_ids(list(VERBS["harmful"]))] += shared
    return wrap_model(
        TransformersModel(module, tokenizer=tokenizer), tokenizer, name=f"random-{size}"
    )


def make_tokenizer() -> Any:
    """A word-level tokenizer over the words of :func:`make_prompts`, with a chat template.

    Five template tokens follow an instruction. The model's vocabulary is larger than the words.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    frames = " ".join(FRAMES).replace("{}", "").split()
    words = [*VERBS["harmful"], *VERBS["harmless"], *" ".join(OBJECTS).split(), *NOUNS, *frames]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<pad>",
        pad_token="<pad>",
        unk_token="<unk>",
        chat_template=TEMPLATE,
    )


def make_prompts(n: int, *, seed: int = 0) -> Prompts:
    """``n`` harmful and ``n`` harmless instructions a split (train, val), no two alike.

    The classes differ in their verbs and in nothing else.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for harm, verbs in VERBS.items():
        every = list(itertools.product(FRAMES, verbs, OBJECTS, NOUNS))
        for i, k in enumerate(rng.permutation(len(every))[: 2 * n]):
            frame, verb, article, noun = every[k]
            rows.append(
                {
                    "text": frame.format(f"{verb} {article} {noun}"),
                    "category": "synthetic",
                    "harm": harm,
                    "style": "toxic" if harm == "harmful" else "safe",
                    "split": "train" if i < n else "val",
                    "source": "benchmarks",
                    "family": f"{harm}-{k}",
                }
            )
    return Prompts.from_rows(rows, name="benchmark")
