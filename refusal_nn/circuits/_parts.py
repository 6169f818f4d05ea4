"""The boxes and arrows of a circuit, for pictures and for programs that draw graphs.

A component is what both reads and writes: a head or an MLP. With grouped-query attention several
query heads share one key-value head, which reads but writes only through them; it is a component of
its own (``a2.kv1``), and a tie leads from it to each of its heads in the circuit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from refusal_nn.circuits._discover import supporting
from refusal_nn.errors import RequestError
from refusal_nn.models._graph import INPUT, LOGITS

if TYPE_CHECKING:
    from refusal_nn.attribution import EdgeGraph

_ORDER = (INPUT, "kv", "head", "mlp", LOGITS)
"""Kinds of component of one layer, in topological order."""

_HEAD = re.compile(r"a(\d+)\.h(\d+)(?:<([qkv])>)?\Z")
_MLP = re.compile(r"m(\d+)\Z")


@dataclass(frozen=True)
class Component:
    """A box: ``kind`` is ``input``, ``head``, ``kv``, ``mlp`` or ``logits``.

    ``layer`` is None for input and logits; ``head`` is the number of a head or key-value head.
    """

    name: str
    kind: str
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Arrow:
    """An edge of the circuit between two components.

    ``edge`` is its name, ``score`` the change of the metric when it is corrupted, NaN where it was
    not scored; ``against`` is true if the edge works against what the metric measures.
    """

    edge: str
    src: str
    dst: str
    reader: str
    score: float
    against: bool = False


@dataclass(frozen=True)
class Parts:
    """Components and arrows in topological order, and ties of key-value heads to their heads."""

    components: tuple[Component, ...]
    arrows: tuple[Arrow, ...]
    ties: tuple[tuple[str, str], ...]


def parts(
    graph: EdgeGraph,
    kept: np.ndarray,
    scores: np.ndarray | None,
    *,
    metric: str = "",
    most: int | None = None,
) -> Parts:
    """Take a circuit apart.

    Parameters
    ----------
    graph : EdgeGraph
    kept : ndarray of bool [src, dst]
    scores : ndarray of float [src, dst] or None
    metric : str
        Kind of metric they are of: it decides which sign supports it.
    most : int, optional
        Only the so many edges with the largest ``|score|``; without scores the first ones.

    Returns
    -------
    Parts

    Examples
    --------
    >>> from refusal_nn.attribution import EdgeGraph
    >>> graph = EdgeGraph(n_layers=1, n_heads=2, n_kv_heads=1)
    >>> taken = parts(graph, graph.mask, None)
    >>> [c.name for c in taken.components]
    ['input', 'a0.kv0', 'a0.h0', 'a0.h1', 'm0', 'logits']
    >>> taken.ties
    (('a0.kv0', 'a0.h0'), ('a0.kv0', 'a0.h1'))
    """
    at = np.argwhere(np.asarray(kept, dtype=bool) & graph.mask)
    if scores is None:
        values = np.full(len(at), np.nan)
    else:
        values = np.asarray(scores, dtype=np.float64)[at[:, 0], at[:, 1]]
    if most is not None and most < len(at):
        strongest = np.argsort(-np.abs(np.nan_to_num(values)), kind="stable")[:most]
        chosen = np.sort(strongest)
        at, values = at[chosen], values[chosen]
    grouped = graph.group > 1
    against = supporting(values, metric) < 0
    arrows = []
    found: set[Component] = set()
    for (s, d), value, bad in zip(at, values, against, strict=True):
        src, dst = graph.src[s], graph.dst[d]
        component, reader = reader_of(dst, grouped=grouped)
        found |= {component, reader_of(src, grouped=grouped)[0]}
        arrows.append(Arrow(f"{src}->{dst}", src, component.name, reader, float(value), bool(bad)))
    components = tuple(sorted(found, key=_place))
    ties = tuple(
        (kv.name, head.name)
        for kv in components
        if kv.kind == "kv"
        for head in components
        if head.kind == "head" and head.layer == kv.layer
        if head.head is not None and head.head // graph.group == kv.head
    )
    return Parts(components, tuple(arrows), ties)


def reader_of(name: str, *, grouped: bool) -> tuple[Component, str]:
    """The component that a reader's (or writer's) name belongs to, and which input of it is meant.

    Raises
    ------
    RequestError
        If the name is no node.
    """
    if name in (INPUT, LOGITS):
        return Component(name, name), name
    if match := _MLP.match(name):
        return Component(name, "mlp", int(match.group(1))), "mlp"
    match = _HEAD.match(name)
    if match is None:
        raise RequestError(
            f"{name!r} is no node of a circuit; nodes look like input, a0.h3, a0.h3<q>, m0, logits."
        )
    layer, head, reader = int(match.group(1)), int(match.group(2)), match.group(3) or ""
    if grouped and reader in ("k", "v"):
        return Component(f"a{layer}.kv{head}", "kv", layer, head), reader
    return Component(f"a{layer}.h{head}", "head", layer, head), reader


def _place(component: Component) -> tuple[bool, int, int, int]:
    """What components are sorted by to be in topological order."""
    layer, head = component.layer or 0, component.head or 0
    return component.kind == LOGITS, layer, _ORDER.index(component.kind), head
