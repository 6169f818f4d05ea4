r"""``planted-gate``: a Llama whose refusal circuit is set by hand, the ground truth for attribution.

The circuit, after the gate-and-amplifier pattern reported for chat models [1]_::

    object token --m0--> harm --a1.h1 (gate)--> gate, at the last position
        gate --a2.h0, a2.h2 (amplifiers)--> refusal --> logit of "I"

- ``m0`` writes *harm* at tokens that name a harmful object.
- The gate ``a1.h1`` looks from the last prompt token to a token with *harm* and copies it into *gate*.
  The unembedding does not read *gate*: the gate head has no direct effect on the logits.
- The amplifiers look from the last prompt token to a token with *gate* (itself) and write *refusal*,
  which only the logit of "I" reads. Without either, the model complies; with the weaker one removed it
  still refuses, by less.

The logit of "Sure" and the words of both answers come straight from the embedding (a table of
successors). All other heads and MLPs are active and write to a *junk* subspace that nothing on the
way to the logits reads. Some of them, :data:`ECHOES`, carry the class itself: their output tells
harmful from harmless and yet changes nothing, which a correlation cannot tell from a cause.

Every residual vector holds the same large constant, so RMSNorm divides by nearly the same number
everywhere and acts as the identity; what the junk changes of it is below :data:`LEAK`.

References
----------
.. [1] How Alignment Routes, arXiv:2604.04385.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from refusal_nn.testing.words import (
    BOS,
    COMPLIANCE,
    END,
    HARMFUL,
    REFUSAL,
    VOCABULARY,
    build_planted_tokenizer,
    token_ids,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

N_LAYERS, N_HEADS, D_HEAD, D_MLP = 4, 4, 24, 32
D_MODEL = N_HEADS * D_HEAD
ROPE_THETA = 1e6

PLANTED_CIRCUIT: dict[str, tuple[str, ...]] = {
    "detector": ("m0",),
    "gate": ("a1.h1",),
    "amplifiers": ("a2.h0", "a2.h2"),
}
"""Role to its nodes: ``a<layer>.h<head>`` an attention head, ``m<layer>`` an MLP."""

PLANTED_NODES: tuple[str, ...] = tuple(n for role in PLANTED_CIRCUIT.values() for n in role)
"""The nodes of the circuit, in the order they act."""

PLANTED_EDGES: tuple[tuple[str, str], ...] = (
    ("input", "m0"),
    ("m0", "a1.h1<k>"),
    ("m0", "a1.h1<v>"),
    ("a1.h1", "a2.h0<k>"),
    ("a1.h1", "a2.h0<v>"),
    ("a1.h1", "a2.h2<k>"),
    ("a1.h1", "a2.h2<v>"),
    ("a2.h0", "logits"),
    ("a2.h2", "logits"),
)
"""Edges whose value differs between a harmful request and its harmless pair, and matters."""

CONSTANT_EDGES: tuple[tuple[str, str], ...] = (
    ("input", "a1.h1<q>"),
    ("input", "a1.h1<k>"),
    ("input", "a2.h0<q>"),
    ("input", "a2.h0<k>"),
    ("input", "a2.h2<q>"),
    ("input", "a2.h2<k>"),
    ("input", "logits"),
)
"""Edges the circuit needs that are the same for both classes: where a head looks by default (the
first token), which token asks (the last of the prompt), and the logit of "Sure"."""

ECHOES: tuple[str, ...] = ("a1.h3", "a3.h2")
"""Distractor heads whose output tells the classes apart without any effect."""

LEAK = 0.01
"""Upper bound on what removing a distractor changes of the refusal score, nats (of about 20)."""

# residual stream: one constant, the three signals, one dimension a token, the rest junk
_CONST, _HARM, _GATE, _REFUSE = range(4)
_IDENTITY = slice(4, 4 + len(VOCABULARY))
_JUNK = slice(_IDENTITY.stop, D_MODEL)
_LEVEL = 64.0
_SUCCESSOR, _SURE = 12.0, 10.0
_AMPLIFY = {"a2.h0": 12.0, "a2.h2": 8.0}
# rotary pair i turns by theta^(-i / 12) a token: the last two hardly turn over a prompt
_FIRST, _SECOND = 11, 10


@torch.no_grad()
def build_planted(seed: int = 0) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The planted model and its tokenizer.

    Parameters
    ----------
    seed : int
        Seed of the distractors; the circuit does not depend on it.

    Returns
    -------
    tuple of (LlamaForCausalLM, PreTrainedTokenizerFast)
        Float32, in eval mode; 4 layers, 4 heads of 24, d_model 96.
    """
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = build_planted_tokenizer()
    tokens = token_ids(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=D_MODEL,
            intermediate_size=D_MLP,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=N_HEADS,
            num_key_value_heads=N_HEADS,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
            tie_word_embeddings=False,
            **tokens,
        )
    )
    model.generation_config = GenerationConfig(do_sample=False, **tokens)
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.zero_()
    # the constant alone has this root mean square; scaling by it makes every norm an identity
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(_LEVEL / D_MODEL**0.5)
    _set_ends(model, draw)
    for layer, block in enumerate(model.model.layers):
        for head in range(N_HEADS):
            _set_distractor(block.self_attn, head, draw)
        if layer == 0:
            _set_detector(block.mlp)
        else:
            _set_junk_mlp(block.mlp, draw)
        if layer == 1:
            _set_mover(block.self_attn, 1, key=_HARM, value=_HARM, out=_GATE, gain=1.0)
            _set_mover(block.self_attn, 3, key=_HARM, value=_HARM, out=_JUNK.start, gain=1.0)
        elif layer == 2:
            for name, gain in _AMPLIFY.items():
                _set_mover(
                    block.self_attn, int(name[-1]), key=_GATE, value=_GATE, out=_REFUSE, gain=gain
                )
        elif layer == 3:
            _set_mover(block.self_attn, 2, key=_GATE, value=_GATE, out=_JUNK.start + 1, gain=1.0)
    return model.eval(), tokenizer


def _id(token: str) -> int:
    return VOCABULARY.index(token)


def _place(token: str) -> int:
    """The residual dimension that says "this is that token"."""
    return _IDENTITY.start + _id(token)


def _set_ends(model: LlamaForCausalLM, draw: torch.Generator) -> None:
    embedding, unembedding = model.model.embed_tokens.weight, model.lm_head.weight
    embedding[:, _CONST] = _LEVEL
    embedding[:, _IDENTITY] = torch.eye(len(VOCABULARY))
    embedding[:, _JUNK] = 0.1 * _noise(draw, len(VOCABULARY), _JUNK.stop - _JUNK.start)
    unembedding[_id("I"), _REFUSE] = 1.0
    unembedding[_id("Sure"), _place("\n")] = _SURE
    for answer in (REFUSAL, COMPLIANCE):
        for token, following in zip(answer, (*answer[1:], END), strict=True):
            unembedding[_id(following), _place(token)] = _SUCCESSOR


def _set_detector(mlp: torch.nn.Module) -> None:
    """One neuron: harm = 1 at harmful objects, below 1e-4 elsewhere."""
    for word in HARMFUL:
        mlp.gate_proj.weight[0, _place(f" {word}")] = 25.0
    mlp.gate_proj.weight[0, _CONST] = -12.5 / _LEVEL
    mlp.up_proj.weight[0, _CONST] = 1.0 / _LEVEL
    mlp.down_proj.weight[_HARM, 0] = 1.0 / 12.5


def _set_mover(
    attention: torch.nn.Module, head: int, *, key: int, value: int, out: int, gain: float
) -> None:
    """A head that copies ``value`` to ``out`` from tokens with ``key`` to the last prompt token.

    All other tokens, and the last one when no token has ``key``, look at the first token, where
    ``value`` is 0.
    """
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    for weight in (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight):
        weight[rows] = 0.0
    attention.o_proj.weight[:, rows] = 0.0
    scale = D_HEAD**0.5
    q, k = attention.q_proj.weight[rows], attention.k_proj.weight[rows]
    q[_FIRST, _place("\n")] = 40.0 * scale
    k[_FIRST, key] = 1.0
    q[_SECOND, _CONST] = 20.0 * scale / _LEVEL
    k[_SECOND, _place(BOS)] = 1.0
    attention.v_proj.weight[rows][0, value] = 1.0
    attention.o_proj.weight[out, rows.start] = gain


def _set_distractor(attention: torch.nn.Module, head: int, draw: torch.Generator) -> None:
    """A random head that reads token identities and junk, and writes junk."""
    rows = slice(head * D_HEAD, (head + 1) * D_HEAD)
    for weight, size in (
        (attention.q_proj.weight, 0.8),
        (attention.k_proj.weight, 0.8),
        (attention.v_proj.weight, 0.5),
    ):
        weight[rows] = size * _reader(draw, D_HEAD)
    attention.o_proj.weight[_JUNK, rows] = 0.05 * _noise(draw, _JUNK.stop - _JUNK.start, D_HEAD)


def _set_junk_mlp(mlp: torch.nn.Module, draw: torch.Generator) -> None:
    """Random neurons that read token identities and junk, and write junk."""
    mlp.gate_proj.weight[:] = 0.7 * _reader(draw, D_MLP)
    mlp.up_proj.weight[:] = 0.7 * _reader(draw, D_MLP)
    mlp.down_proj.weight[_JUNK] = 0.06 * _noise(draw, _JUNK.stop - _JUNK.start, D_MLP)


def _reader(draw: torch.Generator, n: int) -> Tensor:
    """Random rows, (n, d_model), over identities and, weaker lest it grow with depth, junk."""
    rows = torch.zeros(n, D_MODEL)
    rows[:, _IDENTITY] = _noise(draw, n, _IDENTITY.stop - _IDENTITY.start)
    rows[:, _JUNK] = 0.2 * _noise(draw, n, _JUNK.stop - _JUNK.start)
    return rows


def _noise(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=draw)
