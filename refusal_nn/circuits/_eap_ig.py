"""Circuits as EAP-IG and the MIB leaderboard write them: one tree for JSON, one for tensors.

Their graph has one key and one value input for every query head. A model with grouped-query
attention has fewer: there the edge into a key-value head stands for its whole group. On export it
becomes one edge a query head, each with an equal share of the score, since the gradient at a shared
input is the sum of those its heads would have had; on import shares are added up again. Heads that
nothing reads have no part in a circuit: their copies of a shared edge are left out, as EAP-IG's
pruning does, and are not looked at on import.

Their metric is a loss, so that a positive score supports the behaviour. Ours is the change of the
metric when the edge is corrupted: for a metric that is higher where the behaviour is, the negative.

References
----------
Hanna et al. 2024 (EAP-IG), ``eap/graph.py``: ``Graph.to_json``, ``to_pt``, ``from_json``, ``from_pt``.
Mueller et al. 2025 (MIB), circuit localisation track.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._discover import alive, supporting
from refusal_nn.contrasts._metric import KINDS, Metric
from refusal_nn.errors import RequestError
from refusal_nn.models._graph import LOGITS, EdgeGraph, dense
from refusal_nn.prompts._labels import quote

OURS = "refusal_nn"
"""Key of what these files have no place for; their readers ignore it."""

GROUPS = ("same", "any", "all")

_SIZES = {"n_layers": "n_layers", "n_heads": "n_heads", "parallel_attn_mlp": "parallel"}
_HASHES = ("weights_hash", "tokenizer_hash")
_METRIC = ("metric_unit", "metric_tokens", "metric_against", "metric_direction", "metric_layer")


def to_tree(
    circuit: Circuit, *, tensors: bool, d_model: int, model: Mapping[str, str]
) -> dict[str, Any]:
    """What a file of a circuit holds.

    Parameters
    ----------
    circuit : Circuit
    tensors : bool
        The ``.pt`` form: names as lists, ``edges_scores`` (float32, as theirs) and ``edges_in_graph``
        ``[src, dst]``, loadable with ``weights_only=True``. Else the JSON form: plain data, ``nodes``
        and ``edges`` by name.
    d_model : int
        Width of the residual stream; EAP-IG needs it in ``cfg``.
    model : mapping
        Name and hashes of the model, kept under :data:`OURS`.

    Returns
    -------
    dict
        Without scores an edge has 1 in the circuit and 0 outside, so that the circuit is what the
        largest scores give.
    """
    full, kept, scores = expanded(circuit)
    sizes = {key: getattr(full, attribute) for key, attribute in _SIZES.items()}
    ours = {
        "n_kv_heads": dense(circuit.graph).n_kv_heads,
        "scored": circuit.scores is not None,
        **({"metric": str(circuit.attrs["metric"])} if "metric" in circuit.attrs else {}),
        **{key: _plain(circuit.attrs[key]) for key in _METRIC if key in circuit.attrs},
        **{key: str(model[key]) for key in ("model", *_HASHES) if model.get(key)},
    }
    form = _tensors if tensors else _by_name
    return {"cfg": {**sizes, "d_model": d_model}, **form(full, kept, scores), OURS: ours}


def _by_name(full: EdgeGraph, kept: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    nodes = {**dict(zip(full.src, alive(full, kept).tolist(), strict=True)), LOGITS: True}
    edges = zip(full.edges(), scores[full.mask].tolist(), kept[full.mask].tolist(), strict=True)
    return {
        "nodes": {name: {"in_graph": inside} for name, inside in nodes.items()},
        "edges": {
            f"{src}->{dst}": {"score": score, "in_graph": inside}
            for (src, dst), score, inside in edges
        },
    }


def _tensors(full: EdgeGraph, kept: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    import torch

    return {
        "src_nodes": list(full.src),
        "dst_nodes": list(full.dst),
        "edges_scores": torch.tensor(scores, dtype=torch.float32),
        "edges_in_graph": torch.tensor(kept),
        "nodes_in_graph": torch.tensor(alive(full, kept)),
    }


@dataclass(frozen=True)
class CircuitFile:
    """A file from strangers, and the model its circuit must be of.

    Attributes
    ----------
    name : str
        Of the file, for messages.
    tree : object
        What it holds: as ``json.loads`` gives it, or loaded with ``weights_only=True``.
    graph : EdgeGraph
        Of the model.
    model : mapping or None
        Name and hashes the file must not contradict.
    d_model : int or None
        Width of the model's residual stream, which the file must state.
    """

    name: str
    tree: Any
    graph: EdgeGraph
    model: Mapping[str, str] | None = None
    d_model: int | None = None

    def circuit(self, *, tensors: bool, groups: str) -> Circuit:
        """The circuit that the file holds.

        Parameters
        ----------
        tensors : bool
            Whether it is of the ``.pt`` form.
        groups : {"same", "any", "all"}
            As :func:`refusal_nn.circuits.read`.

        Raises
        ------
        RequestError
            If the tree is not of this format, or its circuit is of another graph or model.
        """
        names = ("src_nodes", "dst_nodes", "edges_scores", "edges_in_graph")
        keys = ("cfg", *(names if tensors else ("nodes", "edges")))
        missing = [k for k in keys if not isinstance(self.tree, dict) or k not in self.tree]
        if missing:
            raise self._wrong(f"it holds no {' and no '.join(missing)}")
        self._check_model()
        full, column, _ = expand(self.graph)
        kept, scores = self._of_tensors(full) if tensors else self._of_names(full)
        if bad := int((~np.isfinite(scores[full.mask])).sum()):
            raise self._wrong(f"it holds {bad} scores of edges that are not finite")
        kept, scores = self._folded(full, column, kept, scores, groups)
        attrs = {"source": self.name, "d_model": self.tree["cfg"]["d_model"]}
        ours = self._ours
        attrs |= {k: str(ours[k]) for k in ("model", *_HASHES, "metric") if k in ours}
        attrs |= {key: ours[key] for key in _METRIC if key in ours}
        if {"metric", "metric_tokens", "metric_against"} <= set(ours):
            attrs |= self._metric()
        if ours.get("scored") is False:
            return Circuit(self.graph, kept, None, attrs)
        return Circuit(self.graph, kept, supporting(scores, str(ours.get("metric"))), attrs)

    @property
    def _ours(self) -> dict[str, Any]:
        held = self.tree.get(OURS)
        return held if isinstance(held, dict) else {}

    def _check_model(self) -> None:
        """Refuse a file whose graph, width or hashes are not the model's."""
        cfg = self.tree["cfg"]
        if not isinstance(cfg, dict) or not all(isinstance(cfg.get(k), int) for k in _SIZES):
            raise self._wrong(f"its cfg must give {', '.join(_SIZES)}")
        width = cfg.get("d_model")
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise self._wrong(
                f"d_model of its cfg is {quote(repr(width))[1:-1]}, not a whole number of at least 1"
            )
        mine = {key: getattr(self.graph, attribute) for key, attribute in _SIZES.items()}
        theirs = {key: type(mine[key])(cfg[key]) for key in _SIZES}
        if self.d_model is not None:
            mine["d_model"], theirs["d_model"] = self.d_model, width
        if "n_kv_heads" in self._ours:
            mine["n_kv_heads"] = self.graph.n_kv_heads
            theirs["n_kv_heads"] = self._ours["n_kv_heads"]
        differing = [
            f"{k} {quote(str(theirs[k]))[1:-1]} (model: {mine[k]})"
            for k in mine
            if mine[k] != theirs[k]
        ]
        if differing:
            raise RequestError(
                f"circuit file {self.name!r} is of another model: {', '.join(differing)}; give the "
                "model it was made from."
            )
        model = self.model or {}
        for key in _HASHES:
            found, wanted = self._ours.get(key), model.get(key)
            if found and wanted and found != wanted:
                raise RequestError(
                    f"circuit file {self.name!r} is of another model: it was made from "
                    f"{quote(str(self._ours.get('model', 'one')))}, whose {key} differs from that of "
                    f"{str(model.get('model', 'this model'))!r}; give the model it was made from."
                )

    def _of_names(self, full: EdgeGraph) -> tuple[np.ndarray, np.ndarray]:
        """Kept edges and scores of the JSON form, ``[src, dst]`` of the full graph."""
        nodes, edges = self.tree["nodes"], self.tree["edges"]
        if not isinstance(edges, dict) or not isinstance(nodes, dict):
            raise self._wrong("nodes and edges must be objects keyed by name")
        for node, entry in nodes.items():
            neurons = entry.get("neurons", []) if isinstance(entry, dict) else None
            if not isinstance(neurons, list):
                raise self._wrong(
                    f"node {quote(str(node))} must be an object, and its neurons a list"
                )
            if not all(neurons):
                raise self._neurons(quote(str(node))[1:-1])
        kept = np.zeros(full.mask.shape, dtype=bool)
        scores = np.where(full.mask, 0.0, np.nan)
        index = {f"{src}->{dst}": full.index(src, dst) for src, dst in full.edges()}
        for edge, entry in edges.items():
            if edge not in index:
                raise self._wrong(f"it has an edge {quote(str(edge))} that its graph has not")
            try:
                inside, score = entry["in_graph"], float(entry["score"])
            except (TypeError, KeyError, ValueError, OverflowError):
                why = f"edge {quote(edge)} needs a number 'score' and 'in_graph'"
                raise self._wrong(why) from None
            if not isinstance(inside, bool):
                raise self._wrong(
                    f"'in_graph' of edge {quote(edge)} is {quote(repr(inside))[1:-1]}, not true or false"
                )
            kept[index[edge]], scores[index[edge]] = inside, score
        return kept, scores

    def _of_tensors(self, full: EdgeGraph) -> tuple[np.ndarray, np.ndarray]:
        """Kept edges and scores of the ``.pt`` form, ``[src, dst]`` of the full graph."""
        import torch

        tree = self.tree
        for key, names in (("src_nodes", full.src), ("dst_nodes", full.dst)):
            if not isinstance(tree[key], list) or list(map(str, tree[key])) != names:
                raise self._wrong(
                    f"{key} are not the nodes of the graph that cfg describes, in order"
                )
        for key in ("edges_scores", "edges_in_graph"):
            if not isinstance(tree[key], torch.Tensor) or tree[key].shape != full.mask.shape:
                raise self._wrong(f"{key} must be a tensor of shape {full.mask.shape}")
        neurons = tree.get("neurons_in_graph")
        if neurons is not None and not bool(torch.as_tensor(neurons).bool().all()):
            raise self._neurons("some node")
        # EAP-IG's node-level selection also switches on entries where no edge can be
        kept = tree["edges_in_graph"].detach().cpu().bool().numpy() & full.mask
        scores = tree["edges_scores"].detach().cpu().double().numpy()
        return kept, np.where(full.mask, scores, np.nan)

    def _folded(
        self,
        full: EdgeGraph,
        column: np.ndarray,
        kept: np.ndarray,
        scores: np.ndarray,
        groups: str,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Kept edges and scores ``[src, dst]`` of the model's graph, whose heads share inputs."""
        read = _read_heads(full, column, kept)
        folded_kept = np.zeros(self.graph.mask.shape, dtype=bool)
        folded = np.where(self.graph.mask, 0.0, np.nan)
        for reader, dst in enumerate(self.graph.dst):
            here = np.flatnonzero(column == reader)
            inside = kept[:, here[read[here]]]
            mixed = inside.any(1) & ~inside.all(1)
            if mixed.any() and groups == "same":
                raise RequestError(
                    f"circuit file {self.name!r} keeps the edge from {full.src[int(mixed.argmax())]} "
                    f"to the {dst[-2]} input of only some of {', '.join(self.graph.src_of(dst))}, "
                    "which share it in this model; read it with groups='any' to keep such edges or "
                    "groups='all' to drop them."
                )
            folded_kept[:, reader] = inside.all(1) if groups == "all" else inside.any(1)
            folded[:, reader] = scores[:, here].sum(1)
        return folded_kept, folded

    def _metric(self) -> dict[str, Any]:
        """Attributes of the metric the file names, found to be one."""
        if self._ours["metric"] not in KINDS:
            raise self._wrong(
                f"its metric is {quote(str(self._ours['metric']))}, not one of {', '.join(KINDS)}"
            )
        try:
            return Metric.from_attrs(self._ours).to_attrs()
        except RequestError as error:
            raise self._wrong(f"its metric cannot be read ({error})") from None

    def _wrong(self, why: str) -> RequestError:
        return RequestError(
            f"{self.name!r} is no circuit file as EAP-IG writes them: {why}; export it again from "
            "there, or with `refusal-nn circuit export`."
        )

    def _neurons(self, node: str) -> RequestError:
        return RequestError(
            f"circuit file {self.name!r} keeps only some neurons of {node}; circuits here are made of "
            "whole heads and MLPs, so give an edge-level circuit."
        )


def expand(graph: EdgeGraph) -> tuple[EdgeGraph, np.ndarray, np.ndarray]:
    """The same graph with a key and a value input for every query head.

    Returns
    -------
    full : EdgeGraph
    column : ndarray of int [dst of full]
        Reader of ``graph`` that stands for each reader of ``full``.
    share : ndarray of int [dst of full]
        How many readers of ``full`` it stands for: 1, or the size of a group.
    """
    full = EdgeGraph(graph.n_layers, graph.n_heads, graph.n_heads, graph.parallel)
    place = {name: i for i, name in enumerate(graph.dst)}
    column = []
    for name in full.dst:
        if name.endswith(("<k>", "<v>")):
            stem, head = name[:-3].split(".h")
            name = f"{stem}.h{int(head) // graph.group}{name[-3:]}"
        column.append(place[name])
    columns = np.array(column)
    return full, columns, np.bincount(columns, minlength=len(graph.dst))[columns]


def expanded(circuit: Circuit) -> tuple[EdgeGraph, np.ndarray, np.ndarray]:
    """A circuit with a key and a value input for every query head.

    Returns
    -------
    full : EdgeGraph
    kept : ndarray of bool [src, dst]
    scores : ndarray of float [src, dst]
        Shares of the scores, positive where they support the behaviour, 0 where there is none; 1 and
        0 for kept and not where the circuit has no scores.
    """
    full, column, share = expand(dense(circuit.graph))
    kept = circuit.kept[:, column] & full.mask & _read_heads(full, column, circuit.kept)
    if circuit.scores is None:
        return full, kept, kept.astype(np.float64)
    # an edge that was never scored must not be chosen by whoever ranks these
    worth = supporting(circuit.scores, str(circuit.attrs.get("metric")))
    scores = np.nan_to_num(worth[:, column] / share, nan=0.0)
    return full, kept, np.where(full.mask, scores, 0.0)


def _read_heads(full: EdgeGraph, column: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Readers of the full graph whose head something reads, ``[dst of full]`` bool.

    All heads of a group that share an input if nothing reads any of them.
    """
    read = dict(zip(full.src, np.asarray(kept.any(axis=1)), strict=True))
    here = np.array([read.get(name[:-3], True) for name in full.dst], dtype=bool)
    some = np.bincount(column, weights=here) > 0
    return np.asarray(here | ~some[column])


def _plain(value: Any) -> Any:
    """Lists and numbers of Python's own, as attributes may come back from a store as arrays."""
    return value.tolist() if hasattr(value, "tolist") else value
