"""Seeded results of the shape that patching, attribution and circuits return, for figures and pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits import compare, discover, stability

GRAPH = EdgeGraph(n_layers=4, n_heads=3, n_kv_heads=3)
INTERCHANGES = ("sufficiency", "necessity")
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
METRIC = {"metric": "refusal-log-odds", "metric_unit": "nats"}


def provenance(analysis: str, **more: Any) -> dict[str, Any]:
    return {
        "analysis": analysis,
        "model": "tiny-refuser",
        "revision": "embedded",
        "dtype": "float32",
        "device": "cpu",
        "backend": "local",
        "prompts": "tiny-pairs",
        "prompts_hash": "7a3b" * 16,
        "weights_hash": "cd" * 32,
        "seed": 0,
        "command": f"refusal-nn {analysis.replace('-', ' ', 1)}",
        "interval": "paired BCa bootstrap of clusters",
        "confidence": 0.95,
        **METRIC,
        **more,
    }


def pair_coords(n: int, split: str) -> dict[str, Any]:
    """Labels of ``n`` pairs, two a family."""
    labels = {
        "prompt_id": [f"{split}{i:04d}" for i in range(n)],
        "category": ["harm" if i % 2 else "fraud" for i in range(n)],
        "family": [f"{split}/{i // 2}" for i in range(n)],
        "split": [split] * n,
        "harm": ["harmful"] * n,
        "style": ["toxic"] * n,
        "source": ["synthetic"] * n,
    }
    return {k: ("prompt", np.array(v, dtype=object)) for k, v in labels.items()}


def positions(*, n_layers: int = 4, n_positions: int = 5, seed: int = 0) -> xr.Dataset:
    """What patch positions returns: the decision moves to the last token in layer 2."""
    rng = np.random.default_rng(seed)
    sites = ("resid_pre", "attn_out", "mlp_out")
    mean = rng.normal(0, 0.03, (3, n_layers, n_positions))
    mean[0, 2:, -1] = 0.95
    mean[1, min(2, n_layers - 1), -1] = 0.4
    mean[2, 0, 0] = -0.25
    dims = ("site", "layer", "position")
    return xr.Dataset(
        {
            "recovery_mean": (dims, mean),
            "recovery_mean_low": (dims, mean - 0.1),
            "recovery_mean_high": (dims, mean + 0.1),
            "patched_metric": (("prompt", *dims), rng.normal(0, 1, (6, *mean.shape))),
        },
        coords={
            "site": np.array(sites, dtype=object),
            "layer": np.arange(n_layers),
            "position": np.arange(-n_positions, 0),
            **pair_coords(6, "test"),
        },
        attrs=provenance(
            "patch-positions", interchange="sufficiency", cumulative=False, n_pairs=6,
            dropped_pairs=["x"],
        ),
    )  # fmt: skip


def heads(*, n_layers: int = 4, n_heads: int = 3, seed: int = 0) -> xr.Dataset:
    """What patch heads returns for single heads: a1.h2 and a2.h0 carry something."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(0, 0.02, (2, n_layers, n_heads))
    mean[:, 1, 2] = (0.6, 0.8)
    mean[:, 2, 0] = (0.3, 0.35)
    dims = ("interchange", "layer", "head")
    p = np.where(mean > 0.2, 0.001, 0.6)
    return xr.Dataset(
        {
            "recovery_mean": (dims, mean),
            "recovery_mean_low": (dims, mean - 0.1),
            "recovery_mean_high": (dims, mean + 0.1),
            "head_p_adjusted": (dims, p),
        },
        coords={
            "interchange": np.array(INTERCHANGES, dtype=object),
            "layer": np.arange(n_layers),
            "head": np.arange(n_heads),
        },
        attrs=provenance("patch-heads", n_pairs=20, test="sign flips of families"),
    )


def refusal_heads() -> xr.DataTree:
    """What patch heads returns for a search: a gate, an amplifier, and what they do together."""
    root = heads()
    grid = np.zeros((4, 3), dtype=bool)
    grid[1, 2] = grid[2, 0] = True
    roles = np.full(grid.shape, "", dtype=object)
    roles[1, 2], roles[2, 0] = "gate", "amplifier"
    place = ("layer", "head")
    root = root.assign(
        refusal_head=(place, grid),
        role=(place, roles),
        found_by=(place, np.where(grid, "single", "").astype(object)),
        stability=(place, np.where(grid, 0.97, 0.0)),
        direct_attribution=(place, np.where(grid, 1.25, 0.01)),
        joint_recovery=("interchange", [0.91, 0.93]),
        joint_recovery_low=("interchange", [0.86, 0.89]),
        joint_recovery_high=("interchange", [0.95, 0.96]),
        control_recovery=(("interchange", "draw"), [[0.01, 0.05, 0.02], [0.0, 0.06, 0.03]]),
        control_p=("interchange", [0.25, 0.25]),
    ).assign_attrs(n_test_pairs=20)
    names = np.array(["a1.h2", "a2.h0"], dtype=object)
    cascade = xr.Dataset(
        {"cascade": (("src", "dst"), [[np.nan, 0.88], [np.nan, np.nan]])},
        coords={"src": names, "dst": names},
    )
    said = {f"completions_{into}": completions(into) for into in INTERCHANGES}
    return xr.DataTree.from_dict({"/": root, "cascade": cascade, **said})


def completions(interchange: str, *, n: int = 6) -> xr.Dataset:
    """What patched generation returns: harmless prompts refuse with the heads of harmful ones."""
    names = ["harmful", "harmless", "refusal heads"]
    refused = np.array([[True] * n, [False] * n, [interchange == "sufficiency"] * n])
    refused[2, 0] = not refused[2, 0]
    rate = refused.mean(1)
    place = ("intervention", "prompt")
    text = np.where(refused, "I cannot help with that.", "Sure, here is how.").astype(object)
    return xr.Dataset(
        {
            "completion": (place, text),
            "refused": (place, refused),
            "coherent": (place, np.ones_like(refused)),
            "clean_text": ("prompt", np.array([f"harmful {i}" for i in range(n)], dtype=object)),
            "corrupted_text": (
                "prompt",
                np.array([f"harmless {i}" for i in range(n)], dtype=object),
            ),
            "refusal_rate": ("intervention", rate),
            "refusal_rate_low": ("intervention", np.maximum(rate - 0.1, 0)),
            "refusal_rate_high": ("intervention", np.minimum(rate + 0.1, 1)),
            "coherent_rate": ("intervention", np.ones(3)),
        },
        coords={"intervention": np.array(names, dtype=object), **pair_coords(n, "test")},
        attrs={"interchange": interchange, "confidence": 0.95},
    )


def edges(*, graph: EdgeGraph = GRAPH, n: int = 12, seed: int = 0) -> xr.Dataset:
    """What attribute returns for edges: few strong ones, most of them supporting refusal."""
    rng = np.random.default_rng(seed)
    strength = rng.lognormal(0, 1.2, len(graph.src))[:, None] * rng.lognormal(
        0, 1.2, len(graph.dst)
    )
    strength[:, -1] *= 4
    center = -np.abs(rng.normal(1, 1, graph.mask.shape)) * strength / 20
    scores = center + rng.normal(0, 1, (n, *graph.mask.shape)) * strength / 20
    scores = np.where(graph.mask, scores, np.nan)
    place = ("src", "dst")
    return xr.Dataset(
        {
            "edge_score": (("prompt", *place), scores),
            "edge_score_mean": (place, scores.mean(0)),
            "edge_score_se": (place, scores.std(0, ddof=1) / np.sqrt(n)),
        },
        coords={"src": graph.src, "dst": graph.dst, **pair_coords(n, "train")},
        attrs=provenance(
            "attribute-edges", method="eap-ig", level="edge", steps=5, d_model=16,
            **graph.to_attrs(),
        ),
    )  # fmt: skip


def nodes(*, graph: EdgeGraph = GRAPH) -> xr.Dataset:
    """What attribute returns for nodes."""
    table = edges(graph=graph)
    scores = table["edge_score"].sum("dst")
    return xr.Dataset(
        {"node_score": scores},
        attrs={**table.attrs, "analysis": "attribute-nodes", "level": "node"},
    )


def discovered(*, n: int = 90) -> xr.DataTree:
    """A circuit-discover run of these edges."""
    table = edges()
    circuit = discover(table, edges=n, rule="greedy")
    root = circuit.to_dataset()
    root.attrs = {**provenance("circuit-discover"), **root.attrs}
    return xr.DataTree.from_dict(
        {"/": root, "stability": stability(table, circuit, n_resamples=20)}
    )


def evaluated(*, n: int = 10, draws: int = 19, seed: int = 0) -> xr.DataTree:
    """What circuit evaluate returns for that circuit."""
    rng = np.random.default_rng(seed)
    circuit = discovered()
    total = int(circuit.attrs["n_total"])
    names = np.array(["model", "ablated", "circuit", "complement"], dtype=object)
    root = xr.Dataset(
        {
            "circuit_metric": (("circuit", "prompt"), rng.normal(0, 1, (4, n))),
            **_bounded("faithfulness", (), 0.92, 0.04),
            **_bounded("completeness", (), 0.06, 0.03),
            **_bounded("cpr", (), 0.97, 0.02),
            **_bounded("cmd", (), 0.05, 0.01),
        },
        coords={"circuit": names, **pair_coords(n, "test")},
        attrs=provenance(
            "circuit-evaluate", ablation="resample",
            n_kept=int(circuit.attrs["n_kept"]), n_total=total,
        ),
    )  # fmt: skip
    size = np.array([int(f * total) for f in FRACTIONS])
    curve = np.stack([1 - np.exp(-size / 12), 1.15 - 1.15 * np.exp(-size / 9)])
    curve[:, -1] = 1
    place = ("ranking", "fraction")
    grid = xr.Dataset(
        {
            **_bounded("faithfulness", place, curve, 0.05),
            "edges_kept": (place, np.stack([size, size])),
        },
        coords={
            "ranking": np.array(["absolute", "signed"], dtype=object),
            "fraction": list(FRACTIONS),
        },
    )
    null = xr.Dataset(
        {
            "faithfulness": (
                ("null", "draw"),
                np.stack([rng.normal(0, 0.02, draws), rng.normal(0.2, 0.08, draws)]),
            ),
            "p_value": ("null", np.full(2, 1 / (1 + draws))),
        },
        coords={
            "null": np.array(["random", "layer-matched"], dtype=object),
            "draw": np.arange(draws),
        },
    )
    lost = np.linspace(0.3, -0.02, int(circuit.attrs["n_kept"]))
    kept = np.argwhere(circuit["in_circuit"].values)
    minimality = xr.Dataset(
        _bounded("edge_effect", ("edge",), lost, 0.05),
        coords={
            "edge": np.arange(len(lost)),
            "src": ("edge", np.array([GRAPH.src[s] for s, _ in kept], dtype=object)),
            "dst": ("edge", np.array([GRAPH.dst[d] for _, d in kept], dtype=object)),
        },
    )
    return xr.DataTree.from_dict(
        {
            "/": root,
            "grid": grid,
            "null": null,
            "minimality": minimality,
            "edges": circuit.to_dataset(),
        }
    )


def compared() -> xr.DataTree:
    """What circuit compare returns for circuits of two sizes, with their faithfulness."""
    table = edges()
    circuits = {
        "small": discover(table, edges=60, rule="greedy"),
        "large": discover(table, edges=120, rule="greedy"),
    }
    root = compare(circuits)
    root.attrs = {**provenance("circuit-compare"), **root.attrs}
    place = ("circuit", "pairs")
    cross = xr.Dataset(
        {
            **_bounded("faithfulness", place, np.array([[0.6, 0.55], [0.95, 0.9]]), 0.05),
            **_bounded("completeness", place, np.array([[0.2, 0.25], [0.02, 0.03]]), 0.05),
        },
        coords={
            "circuit": np.array(list(circuits), dtype=object),
            "pairs": np.array(["tiny-pairs", "others"], dtype=object),
        },
    )
    return xr.DataTree.from_dict({"/": root, "cross": cross})


def _bounded(name: str, dims: tuple[str, ...], value: Any, half: float) -> dict[str, Any]:
    value = np.asarray(value, dtype=float)
    ends = {name: value, f"{name}_low": value - half, f"{name}_high": value + half}
    return {key: (dims, v) for key, v in ends.items()}


RUNS: dict[str, Callable[[], xr.Dataset | xr.DataTree]] = {
    "patch-positions": positions,
    "patch-heads": refusal_heads,
    "attribute-nodes": nodes,
    "attribute-edges": edges,
    "circuit-discover": discovered,
    "circuit-evaluate": evaluated,
    "circuit-compare": compared,
}
"""Runs of how refusal is computed, by analysis."""
