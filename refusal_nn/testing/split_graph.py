"""The split graph, built in plain PyTorch: every reader has a residual stream of its own.

A ``transformers`` model that nnsight has never touched runs with hooks that throw away what its blocks
pass on. What each reader (a head's query, key or value, an MLP, the final norm) reads is the explicit
sum of what the writers before it wrote; so an edge can be patched alone, and autograd gives the
gradient at each reader. Slow and simple; all it shares with the code under test is the edge graph,
which names writers and readers and says which come before which.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from refusal_nn.models._graph import EdgeGraph
from refusal_nn.testing.layouts import LAYOUTS

Edge = tuple[str, str]


@dataclass
class Run:
    """One prompt's pass.

    ``logits`` ``[token id]`` are the last token's; ``writes`` is what each writer wrote and ``reads``
    what each reader read, ``[1, token, d_model]``.
    """

    logits: Tensor
    writes: dict[str, Tensor]
    reads: dict[str, Tensor] = field(default_factory=dict)


class SplitGraph:
    """The split graph of a model.

    Parameters
    ----------
    module : torch.nn.Module
        A model that nothing else runs with hooks; its parameters are frozen.
    family : str
        Name of the tiny model, or of one with the same layout.

    Examples
    --------
    >>> from refusal_nn.testing import plain_module
    >>> split = SplitGraph(plain_module("llama"), "llama")
    >>> run = split.run([7, 8, 9])
    >>> tuple(run.writes["a0.h1"].shape), len(run.reads) == len(split.graph.dst)
    ((1, 3, 32), True)
    """

    def __init__(self, module: nn.Module, family: str) -> None:
        self.module = module.requires_grad_(False)
        self.layout = LAYOUTS[family]
        config: Any = module.config
        self.heads: int = config.num_attention_heads
        self.kv: int = getattr(config, "num_key_value_heads", None) or self.heads
        blocks: Any = module.get_submodule(self.layout.blocks)
        self.layers: list[Any] = list(blocks)
        self.graph = EdgeGraph(len(self.layers), self.heads, self.kv, self.layout.parallel)

    def run(
        self,
        row: list[int],
        *,
        embedding: Tensor | None = None,
        added: dict[Edge, Tensor] | None = None,
    ) -> Run:
        """One forward pass of one prompt.

        Parameters
        ----------
        row : list of int
        embedding : Tensor, optional
            Instead of the tokens' own.
        added : dict, optional
            What is added to what a reader reads, by edge.
        """
        self.writes: dict[str, Tensor] = {}
        self.reads: dict[str, Tensor] = {}
        self.constant: Tensor | float = 0.0
        self.added = added or {}
        layout = self.layout
        with ExitStack() as stack:

            def on(module: nn.Module, hook: Callable[..., Any], *, before: bool = False) -> None:
                kind = "pre_hook" if before else "hook"
                stack.enter_context(getattr(module, f"register_forward_{kind}")(hook))

            if embedding is not None:
                on(self.module.get_submodule(layout.embed), lambda *_: embedding)
            on(self.layers[0], self._input, before=True)
            for layer, block in enumerate(self.layers):
                attention = block.get_submodule(layout.attention)
                for name, part in self._projections(attention):
                    on(part, partial(self._project, layer, name))
                on(block.get_submodule(layout.out), partial(self._heads, layer), before=True)
                on(block.mlp, partial(self._into_mlp, layer), before=True)
                end = block.get_submodule(layout.mlp_post) if layout.mlp_post else block.mlp
                on(end, partial(self._mlp, layer))
            on(self.module.get_submodule(layout.final_norm), self._final, before=True)
            logits = self.module(torch.tensor([row])).logits[0, -1]
        return Run(logits, self.writes, self.reads)

    def _reading(self, reader: str) -> Tensor:
        """The sum of what came before a reader, as a tensor of its own."""
        seen = self.graph.src[: int(self.graph.prefix[self.graph.dst.index(reader)])]
        total: Any = sum(self.writes[src] for src in seen) + self.constant
        for (src, dst), value in self.added.items():
            if dst == reader:
                assert src in seen
                total = total + value
        self.reads[reader] = total
        return total

    def _input(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.writes["input"] = args[0]

    def _projections(self, attention: nn.Module) -> list[tuple[str, nn.Module]]:
        if self.layout.fused is None:
            return [(n, getattr(attention, f"{n}_proj")) for n in "qkv"]
        return [("qkv", attention.get_submodule(self.layout.fused))]

    def _project(self, layer: int, name: str, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        norm = self._norm(layer, self.layout.attn_norm)
        parts = []
        for part in name:
            n = self.heads if part == "q" else self.kv
            for head in range(n):
                whole = module.forward(norm(self._reading(f"a{layer}.h{head}<{part}>")))
                parts.append((part, head, whole))
        if name != "qkv":
            return torch.cat([w.chunk(len(parts), -1)[head] for _, head, w in parts], -1)
        width = out.shape[-1] // len(parts)
        if self.layout.interleaved:
            order = {(p, h): 3 * h + "qkv".index(p) for p, h, _ in parts}
        else:
            order = {(p, h): i for i, (p, h, _) in enumerate(parts)}
        new: list[Any] = [None] * len(parts)
        for part, head, whole in parts:
            at = order[part, head]
            new[at] = whole[..., at * width : (at + 1) * width]
        return torch.cat(new, -1)

    def _norm(self, layer: int, name: str | None) -> Callable[[Tensor], Tensor]:
        if name is None:
            return lambda x: x
        return self.layers[layer].get_submodule(name).forward

    def _heads(self, layer: int, module: Any, args: tuple[Tensor, ...]) -> None:
        z = args[0].chunk(self.heads, -1)
        weight = module.weight if self.layout.transposed else module.weight.T
        rows = weight.chunk(self.heads, 0)
        written = [a @ b for a, b in zip(z, rows, strict=True)]
        if self.layout.attn_post:
            norm = self.layers[layer].get_submodule(self.layout.attn_post)
            eps = getattr(norm, "eps", None) or norm.variance_epsilon
            scale = (sum(written).pow(2).mean(-1, keepdim=True) + eps).rsqrt()
            gain = norm.weight + 1 if self.layout.plus_one else norm.weight
            written = [gain * (w * scale) for w in written]
        elif module.bias is not None:
            self.constant = self.constant + module.bias
        for head, w in enumerate(written):
            self.writes[f"a{layer}.h{head}"] = w

    def _into_mlp(self, layer: int, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        # in a parallel block the attention bias of this layer comes after the MLP reads
        before = self.constant
        out = self.layers[layer].get_submodule(self.layout.out)
        if self.layout.parallel and out.bias is not None:
            self.constant = before - out.bias
        norm = self._norm(layer, self.layout.mlp_norm)
        x = norm(self._reading(f"m{layer}"))
        self.constant = before
        return (x,)

    def _mlp(self, layer: int, module: nn.Module, args: Any, out: Tensor) -> None:
        self.writes[f"m{layer}"] = out

    def _final(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (self._reading("logits"),)


def edge_scores(
    split: SplitGraph,
    clean: list[int],
    corrupted: list[int],
    metric: Callable[[Tensor], Tensor],
    fractions: list[float],
) -> Tensor:
    """Writers' differences times gradients averaged over points of the embedding.

    ``[src, dst]`` float64; ``fractions`` of the way from clean to corrupted.
    """
    graph = split.graph
    embed = split.module.get_submodule(split.layout.embed)
    first, second = embed(torch.tensor([clean])), embed(torch.tensor([corrupted]))
    a, b = split.run(clean), split.run(corrupted)
    out = torch.zeros(graph.mask.shape, dtype=torch.float64)
    for fraction in fractions:
        point = (first + fraction * (second - first)).detach().requires_grad_(True)
        here = split.run(clean, embedding=point)
        slopes = torch.autograd.grad(metric(here.logits), [here.reads[d] for d in graph.dst])
        for d, slope in enumerate(slopes):
            for s in range(int(graph.prefix[d])):
                src = graph.src[s]
                out[s, d] += ((b.writes[src] - a.writes[src]) * slope).sum() / len(fractions)
    return out


def exact_scores(
    split: SplitGraph,
    clean: list[int],
    corrupted: list[int],
    metric: Callable[[Tensor], Tensor],
    groups: list[list[Edge]],
) -> list[float]:
    """Change of the metric when the edges of each group carry the corrupted prompt's value.

    In the metric's unit, one number a group; ``metric`` maps the last token's logits to a scalar.
    """
    with torch.no_grad():
        a, b = split.run(clean), split.run(corrupted)
        base = metric(a.logits)
        out = []
        for edges in groups:
            added = {(s, d): b.writes[s] - a.writes[s] for s, d in edges}
            out.append(float(metric(split.run(clean, added=added).logits) - base))
    return out
