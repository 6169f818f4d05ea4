"""How well each attribution method agrees with exact patching, on every edge and node of tiny-refuser.

Exact scores patch each edge of each held-out pair. Agreement is the Pearson correlation over edges of
the mean scores over pairs, and over all edges of all pairs; Spearman's rank correlation of the
sizes; and the share of the exact method's strongest tenth that is in the method's own.

    python benchmarks/attribution_agreement.py --json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import _measure
import numpy as np
import torch
import xarray as xr
from scipy.stats import spearmanr

from refusal_nn.attribution import EdgeGraph, Metric, attribute
from refusal_nn.directions import discover_refusal_tokens
from refusal_nn.models import load_model
from refusal_nn.prompts import load_pairs

METHODS = {
    "edge": ("eap", "eap-ig", "clean-corrupted"),
    "node": ("atp", "eap-ig", "clean-corrupted"),
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the result."""
    parser = _measure.parser("Attribution methods against exact patching.", pairs=64)
    parser.add_argument("--steps", type=int, default=5, help="steps of eap-ig (default 5)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = load_model("tiny-refuser")
    every = load_pairs("tiny-pairs")
    pairs = every.test[: min(args.pairs, 2) if args.quick else args.pairs]
    tokens = discover_refusal_tokens(model, every.train.prompts())
    metric = Metric.refusal_log_odds(tokens)
    found: dict[str, Any] = {
        "benchmark": "attribution_agreement",
        "edges": EdgeGraph.of(model.arch).n_edges,
        "steps": args.steps,
    }
    for level, methods in METHODS.items():
        if args.quick and level == "edge":
            continue  # minutes of patching
        seconds, exact = _measure.cpu_seconds(
            lambda level=level: attribute(model, pairs, metric, method="exact", level=level)
        )
        found[f"{level}_exact"] = {f"{level}_exact_seconds": round(seconds, 2)}
        for method in methods:
            seconds, scores = _measure.cpu_seconds(
                lambda level=level, method=method: attribute(
                    model, pairs, metric, method=method, level=level, steps=args.steps
                )
            )
            measured = {**agreement(exact, scores, level), "seconds": round(seconds, 2)}
            found[f"{level}_{method}"] = {f"{level}_{method}_{k}": v for k, v in measured.items()}
    found.update(_measure.conditions(model), pairs=len(pairs))
    _measure.show(found, as_json=args.json)
    return found


def agreement(exact: xr.Dataset, scores: xr.Dataset, level: str) -> dict[str, float]:
    """Correlations of two tables of scores of the same pairs."""
    a, b = (table[f"{level}_score"].values for table in (exact, scores))
    there = ~np.isnan(a[0])
    a, b = a[:, there], b[:, there]
    x, y = a.mean(0), b.mean(0)
    tenth = max(1, len(x) // 10)
    strongest = [set(np.argsort(-np.abs(v))[:tenth].tolist()) for v in (x, y)]
    return {
        "pearson": round(float(np.corrcoef(x, y)[0, 1]), 4),
        "pearson_of_pairs": round(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]), 4),
        "spearman_of_size": round(float(spearmanr(np.abs(x), np.abs(y)).statistic), 4),
        "strongest_tenth_shared": round(len(strongest[0] & strongest[1]) / tenth, 4),
    }


if __name__ == "__main__":
    main()
