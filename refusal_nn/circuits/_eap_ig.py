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
from typing import TYPE_CHECKING, Any

import numpy as np

from refusal_nn.circuits._discover import supporting
from refusal_nn.errors import RequestError
from refusal_nn.models._graph import EdgeGraph, dense

if TYPE_CHECKING:
    from refusal_nn.circuits._circuit import Circuit

OURS = "refusal_nn"
"""Key of what these files have no place for; their readers ignore it."""

GROUPS = ("same", "any", "all")

_SIZES = {"n_layers": "n_layers", "n_heads": "n_heads", "parallel_attn_mlp": "parallel"}
_CHECKED = ("model", "weights_hash", "tokenizer_hash")
_TOLD = (*_CHECKED, "metric")
_METRIC = ("metric_unit", "metric_tokens", "metric_against", "metric_direction", "metric_layer")


def to_tree(circuit: Circuit, *, d_model: int, model: Mapping[str, str]) -> dict[str, Any]:
    """The JSON form: ``cfg``, ``nodes`` and ``edges`` by name.

    Parameters
    ----------
    circuit : Circuit
    d_model : int
        Width of the residual stream; EAP-IG needs it in ``cfg``.
    model : mapping
        Name and hashes of the model, kept under :data:`OURS`.

    Returns
    -------
    dict
        Plain data. Without scores an edge has 1 in the circuit and 0 outside, so that the circuit
        is what the largest scores give.
    """
    full, kept, scores = expanded(circuit)
    nodes = _nodes_kept(full, kept)
    return {
        "cfg": _config(full, d_model),
        "nodes": {
            **{name: {"in_graph": bool(inside)} for name, inside in zip(full.src, nodes, strict=True)},
            "logits": {"in_graph": True},
        },
        "edges": {
            f"{full.src[s]}->{full.dst[d]}": {
                "score": float(scores[s, d]),
                "in_graph": bool(kept[s, d]),
            }
            for s, d in np.argwhere(full.mask)
        },
        OURS: _ours(circuit, model),
    }  # fmt: skip


def to_tensors(circuit: Circuit, *, d_model: int, model: Mapping[str, str]) -> dict[str, Any]:
    """The ``.pt`` form: names as lists, ``edges_scores`` and ``edges_in_graph`` ``[src, dst]``.

    Parameters
    ----------
    circuit, d_model, model
        As :func:`to_tree`.

    Returns
    -------
    dict
        Tensors and plain data, loadable with ``weights_only=True``. Scores are float32, as theirs.
    """
    import torch

    full, kept, scores = expanded(circuit)
    return {
        "cfg": _config(full, d_model),
        "src_nodes": list(full.src),
        "dst_nodes": list(full.dst),
        "edges_scores": torch.tensor(scores, dtype=torch.float32),
        "edges_in_graph": torch.tensor(kept),
        "nodes_in_graph": torch.tensor(_nodes_kept(full, kept)),
        OURS: _ours(circuit, model),
    }


def from_tree(
    tree: Any,
    graph: EdgeGraph,
    *,
    name: str,
    groups: str,
    model: Mapping[str, str] | None,
    d_model: int | None = None,
) -> Circuit:
    """The circuit that a JSON tree holds.

    Parameters
    ----------
    tree : object
        As ``json.loads`` gives it; from strangers.
    graph : EdgeGraph
        Of the model it must belong to.
    name : str
        Name of the file, for messages.
    groups : {"same", "any", "all"}
        As :func:`refusal_nn.circuits.read`.
    model : mapping or None
        Name and hashes the file must not contradict.
    d_model : int or None
        Width of the model's residual stream, which the file must state.

    Raises
    ------
    RequestError
        If the tree is not of this format, or its circuit is of another graph or model.
    """
    wanted = ("cfg", "nodes", "edges")
    _need(tree, wanted, name)
    full = _checked(tree, graph, name, model, d_model)
    if not isinstance(tree["edges"], dict) or not isinstance(tree["nodes"], dict):
        raise _wrong(name, "nodes and edges must be objects keyed by name")
    for node, entry in tree["nodes"].items():
        neurons = entry.get("neurons", []) if isinstance(entry, dict) else None
        if not isinstance(neurons, list):
            raise _wrong(name, f"node {node!r} must be an object, and its neurons a list")
        if not all(neurons):
            raise _neurons(name, node)
    kept = np.zeros(full.mask.shape, dtype=bool)
    scores = np.where(full.mask, 0.0, np.nan)
    index = {f"{full.src[s]}->{full.dst[d]}": (int(s), int(d)) for s, d in np.argwhere(full.mask)}
    for edge, entry in tree["edges"].items():
        if edge not in index:
            raise _wrong(name, f"it has an edge {edge!r} that its graph has not")
        try:
            inside, score = entry["in_graph"], float(entry["score"])
        except (TypeError, KeyError, ValueError):
            raise _wrong(name, f"edge {edge!r} needs a number 'score' and 'in_graph'") from None
        if not isinstance(inside, bool):
            raise _wrong(name, f"'in_graph' of edge {edge!r} is {inside!r}, not true or false")
        kept[index[edge]], scores[index[edge]] = inside, score
    return _circuit(tree, graph, full, kept, scores, name=name, groups=groups)


def from_tensors(
    tree: Any,
    graph: EdgeGraph,
    *,
    name: str,
    groups: str,
    model: Mapping[str, str] | None,
    d_model: int | None = None,
) -> Circuit:
    """The circuit that a ``.pt`` file holds, loaded with ``weights_only=True``.

    Parameters
    ----------
    tree, graph, name, groups, model, d_model
        As :func:`from_tree`.

    Raises
    ------
    RequestError
        As :func:`from_tree`.
    """
    import torch

    _need(tree, ("cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph"), name)
    full = _checked(tree, graph, name, model, d_model)
    for key, ours in (("src_nodes", full.src), ("dst_nodes", full.dst)):
        if not isinstance(tree[key], list) or list(map(str, tree[key])) != ours:
            raise _wrong(name, f"{key} are not the nodes of the graph that cfg describes, in order")
    arrays = {}
    for key in ("edges_scores", "edges_in_graph"):
        value = tree[key]
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != full.mask.shape:
            raise _wrong(name, f"{key} must be a tensor of shape {full.mask.shape}")
        arrays[key] = value.detach().cpu()
    neurons = tree.get("neurons_in_graph")
    if neurons is not None and not bool(torch.as_tensor(neurons).bool().all()):
        raise _neurons(name, "some node")
    # EAP-IG's node-level selection also switches on entries where no edge can be
    kept = arrays["edges_in_graph"].bool().numpy() & full.mask
    scores = np.where(full.mask, arrays["edges_scores"].double().numpy(), np.nan)
    return _circuit(tree, graph, full, kept, scores, name=name, groups=groups)


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
    alive = np.array([read.get(name[:-3], True) for name in full.dst], dtype=bool)
    some = np.bincount(column, weights=alive) > 0
    return np.asarray(alive | ~some[column])


def _nodes_kept(full: EdgeGraph, kept: np.ndarray) -> np.ndarray:
    """Writers that an edge leaves and, input apart, an edge enters: ``[src]`` bool."""
    read = np.asarray((full.belongs & np.asarray(kept.any(0))[None, :]).any(1))
    read[0] = True
    return np.asarray(kept.any(1) & read)


def _config(full: EdgeGraph, d_model: int) -> dict[str, Any]:
    return {
        "n_layers": full.n_layers,
        "n_heads": full.n_heads,
        "parallel_attn_mlp": full.parallel,
        "d_model": int(d_model),
    }


def _ours(circuit: Circuit, model: Mapping[str, str]) -> dict[str, Any]:
    return {
        "n_kv_heads": dense(circuit.graph).n_kv_heads,
        "scored": circuit.scores is not None,
        **({"metric": str(circuit.attrs["metric"])} if "metric" in circuit.attrs else {}),
        **{key: _plain(circuit.attrs[key]) for key in _METRIC if key in circuit.attrs},
        **{key: str(model[key]) for key in _CHECKED if model.get(key)},
    }


def _plain(value: Any) -> Any:
    """Lists and numbers of Python's own, as attributes may come back from a store as arrays."""
    return value.tolist() if hasattr(value, "tolist") else value


def _need(tree: Any, keys: tuple[str, ...], name: str) -> None:
    missing = [k for k in keys if not isinstance(tree, dict) or k not in tree]
    if missing:
        raise _wrong(name, f"it holds no {' and no '.join(missing)}")


def _checked(
    tree: Mapping[str, Any],
    graph: EdgeGraph,
    name: str,
    model: Mapping[str, str] | None,
    d_model: int | None,
) -> EdgeGraph:
    """The graph the file describes, found to be the model's."""
    cfg = tree["cfg"]
    if not isinstance(cfg, dict) or not all(isinstance(cfg.get(k), int) for k in _SIZES):
        raise _wrong(name, f"its cfg must give {', '.join(_SIZES)}")
    width = cfg.get("d_model")
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise _wrong(name, f"d_model of its cfg is {width!r}, not a whole number of at least 1")
    ours = {key: getattr(graph, attribute) for key, attribute in _SIZES.items()}
    theirs = {key: type(ours[key])(cfg[key]) for key in _SIZES}
    if d_model is not None:
        ours["d_model"], theirs["d_model"] = d_model, width
    ours_too = tree.get(OURS)
    ours_too = ours_too if isinstance(ours_too, dict) else {}
    if "n_kv_heads" in ours_too:
        ours["n_kv_heads"], theirs["n_kv_heads"] = graph.n_kv_heads, ours_too["n_kv_heads"]
    differing = [f"{k} {theirs[k]} (model: {ours[k]})" for k in ours if ours[k] != theirs[k]]
    if differing:
        raise RequestError(
            f"circuit file {name!r} is of another model: {', '.join(differing)}; give the model it "
            "was made from."
        )
    for key in _CHECKED if model else ():
        found, wanted = ours_too.get(key), (model or {}).get(key)
        if key != "model" and found and wanted and found != wanted:
            raise RequestError(
                f"circuit file {name!r} is of another model: it was made from "
                f"{str(ours_too.get('model', 'one'))!r}, whose {key} differs from that of "
                f"{str((model or {}).get('model', 'this model'))!r}; give the model it was made from."
            )
    return expand(graph)[0]


def _circuit(
    tree: Mapping[str, Any],
    graph: EdgeGraph,
    full: EdgeGraph,
    kept: np.ndarray,
    scores: np.ndarray,
    *,
    name: str,
    groups: str,
) -> Circuit:
    from refusal_nn.circuits._circuit import Circuit

    if bad := int((~np.isfinite(scores[full.mask])).sum()):
        raise _wrong(name, f"it holds {bad} scores of edges that are not finite")
    _, column, _ = expand(graph)
    alive = _read_heads(full, column, kept)
    folded_kept = np.zeros(graph.mask.shape, dtype=bool)
    folded = np.where(graph.mask, 0.0, np.nan)
    for reader in range(len(graph.dst)):
        here = np.flatnonzero(column == reader)
        inside = kept[:, here[alive[here]]]
        mixed = inside.any(1) & ~inside.all(1)
        if mixed.any() and groups == "same":
            src, dst = full.src[int(np.flatnonzero(mixed)[0])], graph.dst[reader]
            heads = ", ".join(h for h in graph.src_of(dst))
            raise RequestError(
                f"circuit file {name!r} keeps the edge from {src} to the {dst[-2]} input of only some "
                f"of {heads}, which share it in this model; read it with groups='any' to keep such "
                "edges or groups='all' to drop them."
            )
        folded_kept[:, reader] = inside.all(1) if groups == "all" else inside.any(1)
        folded[:, reader] = scores[:, here].sum(1)
    ours = tree.get(OURS)
    ours = ours if isinstance(ours, dict) else {}
    attrs = {"source": name, "d_model": tree["cfg"]["d_model"]}
    attrs |= {key: str(ours[key]) for key in _TOLD if key in ours}
    attrs |= {key: ours[key] for key in _METRIC if key in ours}
    if "metric" in ours and {"metric_tokens", "metric_against"} <= set(ours):
        attrs |= _metric(ours, name)
    if ours.get("scored") is False:
        return Circuit(graph, folded_kept, None, attrs)
    return Circuit(graph, folded_kept, supporting(folded, str(ours.get("metric"))), attrs)


def _metric(ours: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Attributes of the metric the file names, found to be one."""
    from refusal_nn.contrasts._metric import KINDS, Metric

    if ours["metric"] not in KINDS:
        raise _wrong(name, f"its metric is {ours['metric']!r}, not one of {', '.join(KINDS)}")
    try:
        return Metric.from_attrs(ours).to_attrs()
    except (TypeError, ValueError) as error:
        raise _wrong(name, f"its metric cannot be read ({error})") from None


def _wrong(name: str, why: str) -> RequestError:
    return RequestError(
        f"{name!r} is no circuit file as EAP-IG writes them: {why}; export it again from there, or "
        "with `refusal-nn circuit export`."
    )


def _neurons(name: str, node: str) -> RequestError:
    return RequestError(
        f"circuit file {name!r} keeps only some neurons of {node}; circuits here are made of whole "
        "heads and MLPs, so give an edge-level circuit."
    )
