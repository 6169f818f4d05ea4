"""A circuit: which edges of a model's graph are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.errors import PromptError, RequestError
from refusal_nn.models._graph import EdgeGraph, Graph, graph_of
from refusal_nn.runs._results import IDENTITY

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs

MODEL = ("model", "weights_hash")
"""Attrs that say which model a circuit is of, where it was found by running one."""

PROVENANCE = (*IDENTITY, "prompts", "prompts_hash")
"""Attrs that say on which model and pairs a circuit was found."""

SCORED = ("d_model", "method", "steps")
"""Attrs that say, with those of the metric, how edges were scored."""

FOUND_PAIRS, FOUND_FAMILIES = "found_on_pairs", "found_on_families"
"""Attrs that name the pairs a circuit was found on, so that it is not evaluated on them."""


@dataclass(frozen=True, eq=False)
class Circuit:
    """Edges kept of a model's graph.

    Parameters
    ----------
    graph : Graph
        As :class:`refusal_nn.attribution.EdgeGraph`.
    kept : array, ``[src, dst]`` bool
        Over ``graph.src`` and ``graph.dst``; true only where there is an edge.
    scores : array, ``[src, dst]`` float, optional
        What the edges were chosen by, as :func:`refusal_nn.attribution.attribute` gives them: mean
        change of the metric when the edge is corrupted. NaN where there is no edge.
    attrs : mapping
        How it was found: rule, requested size, model, metric.

    Raises
    ------
    RequestError
        If the arrays are not of the graph's shape, or keep what is no edge.

    Examples
    --------
    >>> from refusal_nn.attribution import EdgeGraph
    >>> graph = EdgeGraph(n_layers=1, n_heads=1, n_kv_heads=1)
    >>> circuit = Circuit.from_edges(graph, [("input", "a0.h0<v>"), ("a0.h0", "logits")])
    >>> circuit.n_kept, circuit.n_total, circuit.nodes
    (2, 8, ['input', 'a0.h0'])
    """

    graph: Graph
    kept: np.ndarray
    scores: np.ndarray | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.graph.mask.shape
        kept = np.array(self.kept, dtype=bool)
        if kept.shape != shape:
            raise RequestError(
                f"the circuit has {kept.shape} edges, but its graph has {shape} (src, dst)."
            )
        if (kept & ~self.graph.mask).any():
            s, d = np.argwhere(kept & ~self.graph.mask)[0]
            raise RequestError(
                f"the circuit keeps {self.graph.src[s]}->{self.graph.dst[d]}, which is no edge of "
                "its graph."
            )
        kept.flags.writeable = False
        object.__setattr__(self, "kept", kept)
        if self.scores is not None:
            scores = np.array(self.scores, dtype=float)
            if scores.shape != shape:
                raise RequestError(
                    f"the circuit's scores have shape {scores.shape}, but its graph has {shape}."
                )
            scores.flags.writeable = False
            object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "attrs", dict(self.attrs))

    @classmethod
    def from_edges(cls, graph: Graph, edges: Iterable[tuple[str, str]], **attrs: Any) -> Circuit:
        """A circuit of named edges.

        Raises
        ------
        RequestError
            If the graph has no such edge.
        """
        kept = np.zeros(graph.mask.shape, dtype=bool)
        for src, dst in edges:
            kept[graph.index(src, dst)] = True
        return cls(graph, kept, attrs=attrs)

    @property
    def n_kept(self) -> int:
        """Edges kept."""
        return int(self.kept.sum())

    @property
    def n_total(self) -> int:
        """Edges of the graph."""
        return self.graph.n_edges

    @property
    def nodes(self) -> list[str]:
        """Writers with a kept edge out or into one of their readers, in topological order."""
        touched = self.kept.any(1) | (self.graph.belongs & self.kept.any(0)).any(1)
        return [self.graph.src[s] for s in np.flatnonzero(touched).tolist()]

    @property
    def complement(self) -> Circuit:
        """Every other edge of the graph."""
        return Circuit(self.graph, self.graph.mask & ~self.kept, self.scores, self.attrs)

    def edges(self) -> list[tuple[str, str]]:
        """The kept edges as (writer, reader)."""
        return [(self.graph.src[s], self.graph.dst[d]) for s, d in np.argwhere(self.kept)]

    def check(self, model: Model, *pairs: Pairs) -> None:
        """Refuse to be run on another model, and to be measured on the pairs it was found on.

        Raises
        ------
        RequestError
            If the model's graph differs, or it is known to be of another model.
        PromptError
            If pairs share a pair or family with those that the attrs name.
        """
        theirs = EdgeGraph.of(model.arch)
        if theirs != self.graph:
            raise RequestError(
                f"the circuit is of a model with {self.graph.sizes}, but {model.name!r} has "
                f"{theirs.sizes}; give the model it was found on."
            )
        identity = model.identity()
        for name in MODEL:
            known = self.attrs.get(name)
            if known is not None and known != identity[name]:
                raise RequestError(
                    f"the circuit was found on model {self.attrs.get('model')!r}, which differs from "
                    f"{model.name!r} in {name}; give the model it was found on."
                )
        for some in pairs:
            self._check_unseen(some)

    def _check_unseen(self, pairs: Pairs) -> None:
        for name, labels in ((FOUND_PAIRS, pairs.pair_id), (FOUND_FAMILIES, pairs.family)):
            known = set(map(str, self.attrs.get(name, ())))
            if both := sorted(known & set(map(str, labels))):
                what = "pair" if name == FOUND_PAIRS else "family"
                raise PromptError(
                    f"{pairs.name!r} and the pairs the circuit was found on share {what} {both[0]!r} "
                    f"({len(both)} in all), so what it does on them says nothing of new ones; give "
                    "pairs of another split or other families."
                )

    def to_dataset(self) -> xr.Dataset:
        """``in_circuit`` and, where known, ``edge_score``, over ``(src, dst)``.

        Attrs are the circuit's own, the graph's sizes, ``n_kept`` and ``n_total``.
        """
        data: dict[str, Any] = {"in_circuit": (("src", "dst"), self.kept.copy())}
        if self.scores is not None:
            data["edge_score"] = (("src", "dst"), self.scores.copy())
        sizes = {"n_kept": self.n_kept, "n_total": self.n_total}
        attrs = {**self.attrs, **self.graph.to_attrs(), **sizes}
        coords = {"src": list(self.graph.src), "dst": list(self.graph.dst)}
        return xr.Dataset(data, coords=coords, attrs=attrs)

    @classmethod
    def from_dataset(cls, ds: xr.Dataset) -> Circuit:
        """The circuit that :meth:`to_dataset` wrote.

        Raises
        ------
        RequestError
            If the dataset holds no circuit, its labels are not those of its graph, or its values no
            edges and scores.
        """
        if "in_circuit" not in ds:
            held = ", ".join(map(str, ds)) or "nothing"
            raise RequestError(
                f"this is not a circuit: no variable 'in_circuit' (it holds {held})."
            )
        graph = graph_of(ds.attrs)
        for dim, names in (("src", graph.src), ("dst", graph.dst)):
            if dim not in ds.coords or list(map(str, ds[dim].values)) != [*names]:
                raise RequestError(
                    f"the circuit's {dim} labels are not those of a graph with {graph.sizes}."
                )
        for name, kinds in (("in_circuit", "biu"), ("edge_score", "fiu")):
            if name in ds and (ds[name].dtype.kind not in kinds or ds[name].dims != ("src", "dst")):
                raise RequestError(
                    f"the circuit's {name} holds {ds[name].dtype} over {ds[name].dims}, not "
                    f"{'truth values' if name == 'in_circuit' else 'numbers'} over (src, dst)."
                )
        scores = ds["edge_score"].values if "edge_score" in ds else None
        own = {*graph.to_attrs(), "n_kept", "n_total"}
        attrs = {str(k): v for k, v in ds.attrs.items() if k not in own}
        return cls(graph, ds["in_circuit"].values.astype(bool), scores, attrs)

    def __repr__(self) -> str:
        return f"<Circuit: {self.n_kept} of {self.n_total} edges, {len(self.nodes)} nodes>"
