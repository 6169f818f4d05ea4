"""The graph of a decoder's residual stream: who writes to it, who reads from it, and in what order.

Writers are the token embedding (``input``), attention heads (``a0.h3``: what the head adds through
the output projection) and MLPs (``m0``). Readers are the query, key and value inputs of a head
(``a0.h3<q>``), MLPs (``m0``) and the final residual stream (``logits``). With grouped-query
attention a key or value reader belongs to a key-value head and is named by its number, since that is
the unit that reads; several query heads share it.

There is an edge wherever the writer comes first: heads of a layer feed that layer's MLP unless the
block computes both in parallel. Writers are in topological order, so the writers a reader sees are
always a prefix of them.

References
----------
Conmy et al. 2023 (ACDC); Hanna et al. 2024 (EAP-IG), whose names these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from refusal_nn.models._architecture import Architecture

INPUT, LOGITS = "input", "logits"
MOST_READERS = 50_000
"""More than the largest models have: what a file says of a graph's size decides how much is made of it."""

_SIZES = ("n_layers", "n_heads", "n_kv_heads", "parallel")


class Graph(Protocol):
    """What a circuit needs of a graph, whatever its nodes are.

    :class:`EdgeGraph`, the only one so far, has every head and MLP of a model, so it is told by four
    sizes. One over sparse features would have the nodes that were found on some prompts, and tell
    them itself; what makes it from attrs goes into :data:`GRAPHS` under its own ``kind``.

    Attributes
    ----------
    kind : str
        Attr ``graph`` of what is stored; ``dense`` where a run has none.
    """

    kind: ClassVar[str]

    @property
    def src(self) -> Sequence[str]:
        """Writers in topological order."""
        ...

    @property
    def dst(self) -> Sequence[str]:
        """Readers, the one that the metric reads last."""
        ...

    @property
    def mask(self) -> np.ndarray:
        """Which edges exist, ``[src, dst]`` bool."""
        ...

    @property
    def belongs(self) -> np.ndarray:
        """``[src, dst]`` bool: whether the reader is part of the writer."""
        ...

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        ...

    @property
    def sizes(self) -> str:
        """What tells it from another graph, in words."""
        ...

    def index(self, src: str, dst: str) -> tuple[int, int]:
        """Row and column of an edge."""
        ...

    def to_attrs(self) -> dict[str, Any]:
        """What defines it, as plain data: ``graph``, its kind, and what :func:`graph_of` needs."""
        ...


@dataclass(frozen=True)
class EdgeGraph:
    """Writers, readers and the edges between them.

    Parameters
    ----------
    n_layers, n_heads, n_kv_heads : int
        Blocks, query heads and key-value heads a block.
    parallel : bool
        Attention and MLP read the same residual stream, so a layer's heads do not feed its MLP.

    Examples
    --------
    >>> graph = EdgeGraph(n_layers=1, n_heads=2, n_kv_heads=1)
    >>> graph.src
    ['input', 'a0.h0', 'a0.h1', 'm0']
    >>> graph.dst
    ['a0.h0<q>', 'a0.h1<q>', 'a0.h0<k>', 'a0.h0<v>', 'm0', 'logits']
    >>> graph.n_edges
    11
    >>> graph.src_of("a0.h0<k>")
    ('a0.h0', 'a0.h1')
    """

    kind: ClassVar[str] = "dense"

    n_layers: int
    n_heads: int
    n_kv_heads: int
    parallel: bool = False

    def __post_init__(self) -> None:
        if min(self.n_layers, self.n_heads, self.n_kv_heads) < 1:
            raise RequestError(f"a graph needs layers and heads, got {self.to_attrs()}.")
        if self.n_layers * self.readers_per_layer > MOST_READERS:
            raise RequestError(
                f"a graph of so many layers and heads has more than {MOST_READERS:,} readers, which "
                "no model has."
            )
        if self.n_heads % self.n_kv_heads:
            raise RequestError(
                f"{self.n_heads} query heads cannot share {self.n_kv_heads} key-value heads evenly."
            )

    @classmethod
    def of(cls, arch: Architecture) -> EdgeGraph:
        """The graph of a model, from its architecture map."""
        return cls(arch.n_layers, arch.n_heads, arch.n_kv_heads, arch.parallel)

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> EdgeGraph:
        """The graph that :meth:`to_attrs` described.

        Raises
        ------
        RequestError
            If a size is missing, no whole number, or larger than that of any model.
        """
        missing = [name for name in _SIZES if name not in attrs]
        if missing:
            raise RequestError(
                f"the attributes do not describe a graph: {', '.join(missing)} missing."
            )
        sizes: dict[str, int] = {}
        for name in _SIZES[:-1]:
            value = attrs[name]
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise RequestError(f"the attributes describe no graph: {name} is no whole number.")
            sizes[name] = int(value)
        parallel = attrs["parallel"]
        if not isinstance(parallel, bool | np.bool_) and parallel not in (0, 1):
            raise RequestError(
                "the attributes describe no graph: parallel is neither true nor false."
            )
        return cls(**sizes, parallel=bool(parallel))

    def to_attrs(self) -> dict[str, Any]:
        """The kind and the sizes that define the graph, as plain data."""
        return {"graph": self.kind, **{name: getattr(self, name) for name in _SIZES}}

    @property
    def sizes(self) -> str:
        """The sizes in words."""
        found = f"{self.n_layers} layers, {self.n_heads} heads, {self.n_kv_heads} key-value heads"
        return f"{found}, parallel blocks" if self.parallel else found

    @property
    def group(self) -> int:
        """Query heads that share one key-value head."""
        return self.n_heads // self.n_kv_heads

    @property
    def readers_per_layer(self) -> int:
        """Readers of one block: query heads, key heads, value heads, and the MLP last."""
        return self.n_heads + 2 * self.n_kv_heads + 1

    @property
    def writers_per_layer(self) -> int:
        """Writers of one block: heads, and the MLP last."""
        return self.n_heads + 1

    @cached_property
    def src(self) -> list[str]:
        """Writers in topological order."""
        names = [INPUT]
        for layer in range(self.n_layers):
            names += [*(f"a{layer}.h{h}" for h in range(self.n_heads)), f"m{layer}"]
        return names

    @cached_property
    def dst(self) -> list[str]:
        """Readers: for each layer query heads, key heads, value heads, the MLP; ``logits`` last."""
        counts = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
        names = []
        for layer in range(self.n_layers):
            names += [f"a{layer}.h{h}<{part}>" for part, n in counts.items() for h in range(n)]
            names.append(f"m{layer}")
        return [*names, LOGITS]

    @cached_property
    def prefix(self) -> np.ndarray:
        """How many writers each reader sees, ``[dst]`` int: always the first so many of ``src``."""
        seen = []
        for layer in range(self.n_layers):
            before = 1 + layer * self.writers_per_layer
            beside = 0 if self.parallel else self.n_heads
            seen += [before] * (self.readers_per_layer - 1) + [before + beside]
        return np.array([*seen, len(self.src)])

    @cached_property
    def mask(self) -> np.ndarray:
        """Which edges exist, ``[src, dst]`` bool; not to be written to."""
        mask = np.arange(len(self.src))[:, None] < self.prefix[None, :]
        mask.flags.writeable = False
        return mask

    @property
    def n_edges(self) -> int:
        """Number of edges."""
        return int(self.prefix.sum())

    def edges(self) -> list[tuple[str, str]]:
        """Every edge as (writer, reader), in order of ``src``, then ``dst``."""
        return [(self.src[s], self.dst[d]) for s, d in np.argwhere(self.mask)]

    def src_of(self, dst: str) -> tuple[str, ...]:
        """The writers whose output a reader decides: of a key or value head, its group of heads.

        Empty for ``logits``, which writes nothing.

        Raises
        ------
        RequestError
            If there is no such reader.
        """
        if dst not in self._dst_index:
            raise RequestError(
                f"this graph has no reader {dst!r}; readers look like {self.dst[0]!r}."
            )
        return tuple(compress(self.src, self.belongs[:, self._dst_index[dst]]))

    def dst_of(self, src: str) -> tuple[str, ...]:
        """The readers that a writer's output depends on directly; empty for ``input``.

        Raises
        ------
        RequestError
            If there is no such writer.
        """
        if src not in self._src_index:
            raise RequestError(
                f"this graph has no writer {src!r}; writers look like {self.src[1]!r}."
            )
        if src == INPUT:
            return ()
        if src.startswith("m"):
            return (src,)
        stem, head = src.split(".h")
        kv = int(head) // self.group
        return (f"{src}<q>", f"{stem}.h{kv}<k>", f"{stem}.h{kv}<v>")

    @cached_property
    def belongs(self) -> np.ndarray:
        """``[src, dst]`` bool: whether the reader is part of the writer (see :meth:`dst_of`)."""
        out = np.zeros(self.mask.shape, dtype=bool)
        for src in self.src:
            for dst in self.dst_of(src):
                out[self._src_index[src], self._dst_index[dst]] = True
        out.flags.writeable = False
        return out

    def index(self, src: str, dst: str) -> tuple[int, int]:
        """Row and column of an edge.

        Raises
        ------
        RequestError
            If there is no such edge.
        """
        if src not in self._src_index or dst not in self._dst_index:
            raise RequestError(f"this graph has no edge {src}->{dst}: no such node.")
        at = self._src_index[src], self._dst_index[dst]
        if not self.mask[at]:
            raise RequestError(
                f"this graph has no edge {src}->{dst}: {src} comes after {dst} reads."
            )
        return at

    @cached_property
    def _src_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.src)}

    @cached_property
    def _dst_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.dst)}


GRAPHS: dict[str, Callable[[Mapping[str, Any]], Graph]] = {EdgeGraph.kind: EdgeGraph.from_attrs}
"""What makes a graph from attrs, by the kind that they name."""


def graph_of(attrs: Mapping[str, Any]) -> Graph:
    """The graph that :meth:`Graph.to_attrs` described.

    Raises
    ------
    RequestError
        If the attrs describe none, or one of a kind that is not known here.

    Examples
    --------
    >>> graph_of({"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "parallel": False}).kind
    'dense'
    """
    kind = str(attrs.get("graph", EdgeGraph.kind))
    if kind not in GRAPHS:
        raise RequestError(f"this is of a graph of kind {kind!r}; known are {', '.join(GRAPHS)}.")
    return GRAPHS[kind](attrs)


def dense(graph: Graph) -> EdgeGraph:
    """The graph, where only one of whole heads and MLPs will do.

    Raises
    ------
    RequestError
        If it is of another kind.
    """
    if not isinstance(graph, EdgeGraph):
        raise RequestError(
            f"this needs a graph of whole heads and MLPs, but the circuit's is of kind {graph.kind!r}."
        )
    return graph
