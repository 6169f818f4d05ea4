r"""Planted circuits of other shapes and architectures: built, not shipped.

All share the tokenizer and the pairs of ``planted-gate`` (:mod:`refusal_nn.testing.gate`), a constant in
the residual stream that makes every norm act as the identity, and active distractors: all other heads
and MLPs read token identities and write to a *junk* subspace that nothing on the way to the logits reads.

``chain``, GPT-2 (LayerNorm, fused projections, learned positions)::

    object --m0--> harm --a1.h0--> gate, at the last token --m2--> refusal

``either``, Llama, two branches of which each does most of the work alone::

    object --m0--> harm --a1.h0--> first  \
    object --------------a1.h2--> second  / --m1 (saturates)--> refusal

``both``, Llama with grouped queries, where one branch decides where a head looks (key composition) and
the other what it finds there (value composition)::

    object --m0--> harm --a1.h1--> key   \
    object --------------a1.h3--> value  / --a2.h2--> refusal

Key and value readers are named by their key-value head, as in :class:`refusal_nn.attribution.EdgeGraph`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from refusal_nn.testing.words import (
    BOS,
    HARMFUL,
    HARMLESS,
    build_planted_tokenizer,
    token_ids,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

N_LAYERS, N_HEADS, D_HEAD, N_NEURONS = 3, 4, 24, 16
D_MODEL = N_HEADS * D_HEAD
REFUSAL_TOKEN = "I"

# residual stream: two constants of opposite sign (so the mean is 0, for LayerNorm), what objects
# are in the embedding, the signals, one dimension a token, the rest junk
_PLUS, _MINUS, _OBJECT, _TABOO, _HARM, _FIRST, _SECOND, _REFUSE = range(8)
_IDENTITY = 8
_LEVEL = 64.0
_SURE = 10.0
_REFUSAL = 20.0
# an object with the key a head looks for against the first token, where it looks by default
_FOUND, _DEFAULT = 12.0, 6.0
# rotary pairs that hardly turn over a prompt
_SLOW = (11, 10)


@dataclass(frozen=True)
class PlantedShape:
    """A model whose circuit is known.

    Attributes
    ----------
    name : str
    model : transformers causal language model
        Float32, in eval mode.
    tokenizer : PreTrainedTokenizerFast
    edges : tuple of (src, dst)
        Edges whose value differs between the prompts of a pair and matters.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerFast
    edges: tuple[tuple[str, str], ...]


CHAIN_EDGES = (
    ("input", "m0"),
    ("m0", "a1.h0<k>"),
    ("m0", "a1.h0<v>"),
    ("a1.h0", "m2"),
    ("m2", "logits"),
)
EITHER_EDGES = (
    ("input", "m0"),
    ("m0", "a1.h0<k>"),
    ("m0", "a1.h0<v>"),
    ("input", "a1.h2<v>"),
    ("a1.h0", "m1"),
    ("a1.h2", "m1"),
    ("m1", "logits"),
)
BOTH_EDGES = (
    ("input", "m0"),
    ("m0", "a1.h0<k>"),
    ("m0", "a1.h0<v>"),
    ("input", "a1.h1<v>"),
    ("a1.h1", "a2.h1<k>"),
    ("a1.h3", "a2.h1<v>"),
    ("a2.h2", "logits"),
)


@torch.no_grad()
def build_chain(seed: int = 0) -> PlantedShape:
    """One path through an MLP, a head and an MLP, in GPT-2's architecture."""
    tokenizer = build_planted_tokenizer()
    parts = _gpt2(tokenizer, seed)
    parts.detector(0)
    parts.mover(1, 0, key=_HARM, value=_HARM, out=_FIRST)
    # gate 0 gives 0, gate 1 gives 1, nearly linear above a half
    parts.neuron(2, 0, read={_FIRST: 12.0}, constant=-6.0, write={_REFUSE: _REFUSAL / 6.0})
    parts.centre(parts.model.lm_head.weight)
    return PlantedShape("chain", parts.model.eval(), tokenizer, CHAIN_EDGES)


@torch.no_grad()
def build_either(seed: int = 0) -> PlantedShape:
    """Two branches into an MLP that saturates: the second adds little to the first."""
    tokenizer = build_planted_tokenizer()
    parts = _llama(tokenizer, seed, kv_heads=N_HEADS)
    parts.detector(0)
    parts.mover(1, 0, key=_HARM, value=_HARM, out=_FIRST)
    parts.mover(1, 2, key=_OBJECT, value=_TABOO, out=_SECOND)
    both = {_FIRST: 6.0, _SECOND: 6.0}
    # min(first + second, 1.4), up to rounding of the corners
    parts.neuron(1, 0, read=both, constant=0.0, write={_REFUSE: _REFUSAL / 6.0})
    parts.neuron(1, 1, read=both, constant=-8.4, write={_REFUSE: -_REFUSAL / 6.0})
    return PlantedShape("either", parts.model.eval(), tokenizer, EITHER_EDGES)


@torch.no_grad()
def build_both(seed: int = 0) -> PlantedShape:
    """A head that finds the value of one branch where the other has put the key; grouped queries."""
    tokenizer = build_planted_tokenizer()
    parts = _llama(tokenizer, seed, kv_heads=2)
    parts.detector(0)
    parts.mover(1, 1, key=_HARM, value=_HARM, out=_FIRST)
    parts.mover(1, 3, key=_OBJECT, value=_TABOO, out=_SECOND)
    parts.mover(2, 2, key=_FIRST, value=_SECOND, out=_REFUSE, gain=_REFUSAL)
    return PlantedShape("both", parts.model.eval(), tokenizer, BOTH_EDGES)


SHAPES: dict[str, Callable[..., PlantedShape]] = {
    "chain": build_chain,
    "either": build_either,
    "both": build_both,
}
"""Builders by name, each taking the seed of the distractors."""


class _Parts:
    """Weights of a model by what they do: views that are written in place.

    ``q``, ``k``, ``v`` map (layer, head or key-value head) to ``[d_head, d_model]``, ``o`` to
    ``[d_model, d_head]``; ``read`` and ``write`` a layer to ``[neuron, d_model]`` and ``[d_model,
    neuron]``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerFast,
        views: dict[str, Callable[..., Tensor]],
        seed: int,
        kv_heads: int,
    ) -> None:
        self.model, self.kv_heads = model, kv_heads
        self.tokens = tokenizer.get_vocab()
        self.q, self.k, self.v, self.o = (views[name] for name in "qkvo")
        self.read, self.write = views["read"], views["write"]
        self.draw = torch.Generator().manual_seed(seed)
        self.junk = slice(_IDENTITY + len(self.tokens), D_MODEL)
        for layer in range(N_LAYERS):
            self._distract(layer)

    def place(self, token: str) -> int:
        """The residual dimension that says "this is that token"; a leading space counts."""
        return _IDENTITY + self.tokens[token.replace(" ", "\u0120").replace("\n", "\u010a")]

    def ends(self, embedding: Tensor, unembedding: Tensor) -> None:
        """What tokens bring in, and what their logits read."""
        embedding[:, _PLUS], embedding[:, _MINUS] = _LEVEL, -_LEVEL
        embedding[:, _IDENTITY : self.junk.start] = torch.eye(len(self.tokens))
        embedding[:, self.junk] = 0.1 * self._noise(len(self.tokens), self._width)
        for words, taboo in ((HARMFUL, 1.0), (HARMLESS, 0.0)):
            for word in words:
                token = self.place(f" {word}") - _IDENTITY
                embedding[token, _OBJECT], embedding[token, _TABOO] = 1.0, taboo
        unembedding[self.tokens[REFUSAL_TOKEN], _REFUSE] = 1.0
        unembedding[self.tokens["Sure"], self.place("\n")] = _SURE

    def detector(self, layer: int) -> None:
        """Harm = 1 at harmful objects, hardly anything elsewhere, in the layer's first neuron."""
        read = {self.place(f" {word}"): 25.0 for word in HARMFUL}
        self.neuron(layer, 0, read=read, constant=-12.5, write={_HARM: 1 / 12.5})

    def neuron(
        self,
        layer: int,
        index: int,
        *,
        read: dict[int, float],
        constant: float,
        write: dict[int, float],
    ) -> None:
        """Set one neuron; all others of its MLP keep writing junk."""
        self.read(layer)[index] = 0.0
        self.write(layer)[:, index] = 0.0
        self.read(layer)[index, _PLUS] = constant / _LEVEL
        for dim, weight in read.items():
            self.read(layer)[index, dim] = weight
        for dim, weight in write.items():
            self.write(layer)[dim, index] = weight

    def mover(
        self, layer: int, head: int, *, key: int, value: int, out: int, gain: float = 1.0
    ) -> None:
        """A head that copies ``value`` to ``out`` from tokens with ``key`` to the last token.

        Without one it looks at the first token, where ``value`` is 0.
        """
        kv = head * self.kv_heads // N_HEADS
        for part in (self.q(layer, head), self.k(layer, kv)):
            part[:] = 0.0
        self.o(layer, head)[:] = 0.0
        found, default = _SLOW
        scale = D_HEAD**0.5
        self.q(layer, head)[found, self.place("\n")] = _FOUND * scale
        self.k(layer, kv)[found, key] = 1.0
        self.q(layer, head)[default, _PLUS] = _DEFAULT * scale / _LEVEL
        self.k(layer, kv)[default, self.place(BOS)] = 1.0
        self.v(layer, kv)[0] = 0.0  # the others stay for distractors that share the head
        self.v(layer, kv)[0, value] = 1.0
        self.o(layer, head)[out, 0] = gain

    def centre(self, unembedding: Tensor) -> None:
        """Make every reader blind to the mean, which LayerNorm subtracts.

        The two constants cancel, so the same weight on both changes a row's sum and nothing else.
        """
        layers = range(N_LAYERS)
        readers = [
            view(layer, head)
            for view in (self.q, self.k, self.v)
            for layer in layers
            for head in range(N_HEADS)
        ]
        for rows in (*readers, *(self.read(layer) for layer in layers), unembedding):
            rows[:, _PLUS : _MINUS + 1] -= rows.sum(-1, keepdim=True) / 2

    def _distract(self, layer: int) -> None:
        """Random heads and neurons that read identities and junk, and write junk."""
        for head in range(N_HEADS):
            self.q(layer, head)[:] = 0.8 * self._reader(D_HEAD)
            self.o(layer, head)[self.junk] = 0.05 * self._noise(self._width, D_HEAD)
        for head in range(self.kv_heads):
            self.k(layer, head)[:] = 0.8 * self._reader(D_HEAD)
            self.v(layer, head)[:] = 0.5 * self._reader(D_HEAD)
        self.read(layer)[:] = 0.7 * self._reader(N_NEURONS)
        self.write(layer)[self.junk] = 0.06 * self._noise(self._width, N_NEURONS)

    @property
    def _width(self) -> int:
        return self.junk.stop - self.junk.start

    def _reader(self, n: int) -> Tensor:
        rows = torch.zeros(n, D_MODEL)
        rows[:, _IDENTITY : self.junk.start] = self._noise(n, len(self.tokens))
        rows[:, self.junk] = 0.2 * self._noise(n, self._width)
        return rows

    def _noise(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.draw)


def _llama(tokenizer: PreTrainedTokenizerFast, seed: int, *, kv_heads: int) -> _Parts:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            **token_ids(tokenizer),
            vocab_size=len(tokenizer),
            hidden_size=D_MODEL,
            intermediate_size=N_NEURONS,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=N_HEADS,
            num_key_value_heads=kv_heads,
            max_position_embeddings=128,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            tie_word_embeddings=False,
        )
    )
    blocks = model.model.layers
    _blank(model)

    def rows(name: str) -> Callable[[int, int], Tensor]:
        return lambda layer, head: getattr(blocks[layer].self_attn, name).weight[_part(head)]

    views: dict[str, Callable[..., Tensor]] = {
        **{part: rows(f"{part}_proj") for part in "qkv"},
        "o": lambda layer, head: blocks[layer].self_attn.o_proj.weight[:, _part(head)],
        "read": lambda layer: blocks[layer].mlp.gate_proj.weight,
        "write": lambda layer: blocks[layer].mlp.down_proj.weight,
    }
    for block in blocks:  # the linear half of every neuron is 1
        block.mlp.up_proj.weight[:, _PLUS] = 1.0 / _LEVEL
    parts = _Parts(model, tokenizer, views, seed, kv_heads)
    parts.ends(model.model.embed_tokens.weight, model.lm_head.weight)
    return parts


def _gpt2(tokenizer: PreTrainedTokenizerFast, seed: int) -> _Parts:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(
            **token_ids(tokenizer),
            vocab_size=len(tokenizer),
            n_embd=D_MODEL,
            n_inner=N_NEURONS,
            n_layer=N_LAYERS,
            n_head=N_HEADS,
            n_positions=128,
            tie_word_embeddings=False,
        )
    )
    blocks = model.transformer.h
    _blank(model)

    def columns(number: int) -> Callable[[int, int], Tensor]:
        def view(layer: int, head: int) -> Tensor:
            start = number * D_MODEL + head * D_HEAD
            return blocks[layer].attn.c_attn.weight[:, start : start + D_HEAD].T

        return view

    views: dict[str, Callable[..., Tensor]] = {
        **{part: columns(i) for i, part in enumerate("qkv")},
        "o": lambda layer, head: blocks[layer].attn.c_proj.weight[_part(head)].T,
        "read": lambda layer: blocks[layer].mlp.c_fc.weight.T,
        "write": lambda layer: blocks[layer].mlp.c_proj.weight.T,
    }
    parts = _Parts(model, tokenizer, views, seed, N_HEADS)
    parts.ends(model.transformer.wte.weight, model.lm_head.weight)
    positions = model.transformer.wpe.weight
    positions[:, parts.junk] = 0.05 * parts._noise(len(positions), parts._width)
    return parts


def _blank(model: Any) -> None:
    """All weights 0, and norms that undo the root mean square of the constants alone."""
    for name, parameter in model.named_parameters():
        norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
        parameter.fill_((2 / D_MODEL) ** 0.5 * _LEVEL if norm else 0.0)


def _part(head: int) -> slice:
    return slice(head * D_HEAD, (head + 1) * D_HEAD)
