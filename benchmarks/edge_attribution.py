"""Edge attribution by integrated gradients against the passes alone, in plain PyTorch.

Scores of every edge for each of 16 pairs of 32 tokens, 5 steps, on a random model of GPT-2 small's
size (32,491 edges). The *floor* is what no implementation can do without: 2 forward passes and 5
forward and backward passes of the bare frozen model, logits at the last token alone, and nothing
done with them. Memory is the peak of the process above what it holds once the model is loaded.

    python benchmarks/edge_attribution.py --json
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _measure
import _reference
import numpy as np
import torch
import xarray as xr
from _model import NOUNS, OBJECTS, VERBS, make_model

from refusal_nn.attribution import EdgeGraph, Metric, attribute
from refusal_nn.prompts import Pairs
from refusal_nn.tracing import pad

PAIRS, TOKENS, STEPS = 16, 32, 5
ROWS = 20
"""Rows a pass: four pairs at five steps."""
REFUSAL = [3, 5, 7, 11]
"""Token ids; of a random model any will do."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the result."""
    args = _measure.parser("EAP-IG against its passes alone.", pairs=5).parse_args(argv)
    torch.set_num_threads(1)
    model = make_model("quick" if args.quick else "gpt2-small")
    pairs = make_pairs(PAIRS, TOKENS)
    clean, corrupted = (
        pad(model.chat.tokens(side.texts), model.pad_token).ids
        for side in (pairs.clean, pairs.corrupted)
    )
    if set(map(len, clean)) != {TOKENS}:
        raise AssertionError(f"pairs have {clean.shape[1]} tokens, not {TOKENS}")
    metric = Metric.refusal_log_odds(REFUSAL)

    # of a random model any pairs will do
    options: dict[str, Any] = {"check": False, "batch_size": ROWS}

    def ours() -> xr.Dataset:
        return attribute(model, pairs, metric, method="eap-ig", steps=STEPS, **options)

    def floor() -> torch.Tensor:
        return _reference.integrated_gradients(model.module, clean, corrupted, REFUSAL, STEPS)

    attribute(model, pairs[:1], metric, method="eap-ig", steps=1, check=False)  # imports, checks
    with Peak() as peak:
        scores = ours()
    along_input = scores["edge_score"].sel(src="input").sum("dst").values
    floor_input = floor().numpy()
    times = _measure.interleaved(
        ours, floor, pairs=min(args.pairs, 2) if args.quick else args.pairs
    )
    ratio = [a / b for a, b in zip(*times, strict=True)]
    found = {
        "benchmark": "edge_attribution",
        "ratio_to_floor": round(statistics.median(ratio), 4),
        "ratio_min": round(min(ratio), 4),
        "ratio_max": round(max(ratio), 4),
        "seconds_ours": round(statistics.median(times[0]), 4),
        "seconds_floor": round(statistics.median(times[1]), 4),
        "pairs": len(ratio),
        "extra_gb": round(peak.gigabytes, 3),
        "prompts": PAIRS,
        "tokens": TOKENS,
        "steps": STEPS,
        "rows_per_pass": ROWS,
        "edges": EdgeGraph.of(model.arch).n_edges,
        "scores": list(scores["edge_score"].shape),
        # the edges out of the input carry the integrated gradient of the embedding
        "max_abs_diff_input": float(np.abs(along_input - floor_input).max()),
        "largest_input": float(np.abs(floor_input).max()),
        "largest_score": float(np.nanmax(np.abs(scores["edge_score"].values))),
        **_measure.conditions(model),
    }
    _measure.show(found, as_json=args.json)
    return found


def make_pairs(n: int, tokens: int, *, seed: int = 0) -> Pairs:
    """Pairs of ``tokens`` tokens each, the template's six included, that differ in verb and noun."""
    rng = random.Random(seed)
    rows = []
    for i in range(n):
        filler = [rng.choice([*NOUNS, *" ".join(OBJECTS).split()]) for _ in range(tokens - 8)]
        clean = f"{rng.choice(VERBS['harmful'])} {' '.join(filler)} {rng.choice(NOUNS)}"
        corrupted = f"{rng.choice(VERBS['harmless'])} {' '.join(filler)} {rng.choice(NOUNS)}"
        labels = {"category": "synthetic", "split": "train", "family": f"pair-{i}"}
        rows.append({"clean": clean, "corrupted": corrupted, **labels})
    return Pairs.from_rows(rows, name="benchmark")


class Peak:
    """Peak of this process's resident memory above that at entry, in 1e9 bytes (Linux)."""

    gigabytes = float("nan")

    def __enter__(self) -> Peak:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.gigabytes = (self._read("VmHWM") - self.before) / 1e9

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
