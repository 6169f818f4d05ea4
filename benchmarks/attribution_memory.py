"""Memory of edge attribution kept as a run: it must not grow with the number of pairs.

Scores of every edge (``eap``) of a random model of 48 layers and 16 heads (943,561 edges) for 64 and
for 640 pairs, each in a process of its own. Memory is the peak of the process above what it holds
once the model is loaded. Held whole, the scores of 640 pairs are 4.9 GB and those of existing edges
2.5 GB.

    python benchmarks/attribution_memory.py --json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _measure
import torch
from _model import make_model
from edge_attribution import REFUSAL, Peak, make_pairs

from refusal_nn.attribution import EdgeGraph, Metric, attribute
from refusal_nn.runs import Keeping, record

TOKENS = 16
PAIRS = {"deep": (64, 640), "half-deep": (80, 160)}
ROWS = {"deep": None, "half-deep": 8}
"""Rows a pass; the default of a small model would take all pairs in one."""

EXACT = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}
"""What is freed goes back to the system at once: else the peak is also what the allocator kept."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(description="Memory of attribution by number of pairs.")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    parser.add_argument("--quick", action="store_true", help="12 layers, 80 and 160 pairs")
    parser.add_argument("--one", type=int, metavar="PAIRS", help="measure this many, here")
    args = parser.parse_args(argv)
    size = "half-deep" if args.quick else "deep"
    if args.one is not None:
        found = one(size, args.one)
        print(json.dumps(found))
        return found
    options = ["--quick"] if args.quick else []
    each = []
    for n in PAIRS[size]:
        command = [sys.executable, __file__, *options, "--one", str(n)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, check=True, text=True, env={**os.environ, **EXACT}
        )
        each.append(json.loads(done.stdout))
    few, many = each
    found = {
        "benchmark": "attribution_memory",
        "pairs": list(PAIRS[size]),
        "ratio": round(many["peak_extra_mb"] / few["peak_extra_mb"], 4),
        "peak_extra_mb": {entry["pairs"]: entry["peak_extra_mb"] for entry in each},
        "dense_mb": {entry["pairs"]: entry["dense_mb"] for entry in each},
        "stored_mb": {entry["pairs"]: entry["stored_mb"] for entry in each},
        "seconds": {entry["pairs"]: entry["seconds"] for entry in each},
        **{key: many[key] for key in ("edges", "n_layers", "n_heads", "d_model", "versions")},
    }
    _measure.show(found, as_json=args.json)
    return found


def one(size: str, n: int) -> dict[str, Any]:
    """Peak and time of one run of ``n`` pairs."""
    torch.set_num_threads(1)
    model = make_model(size)
    graph = EdgeGraph.of(model.arch)
    metric = Metric.logit_difference(REFUSAL[:1], REFUSAL[1:2])
    attribute(model, make_pairs(1, TOKENS), metric, method="eap", check=False)  # imports, checks
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with Peak() as peak:
            run = record(
                attribute,
                model,
                make_pairs(n, TOKENS),
                metric,
                method="eap",
                check=False,  # of a random model any pairs will do
                batch_size=ROWS[size],
                keep=Keeping(Path(folder)),
            )
        seconds = time.perf_counter() - start
        stored = sum(file.stat().st_size for file in run.path.rglob("*") if file.is_file())
        shape = run.tree["edge_score"].shape
    return {
        "pairs": n,
        "peak_extra_mb": round(peak.gigabytes * 1e3, 1),
        "dense_mb": round(4 * shape[0] * shape[1] * shape[2] / 1e6, 1),
        "stored_mb": round(stored / 1e6, 1),
        "seconds": round(seconds, 1),
        "edges": graph.n_edges,
        **_measure.conditions(model),
    }


if __name__ == "__main__":
    main()
