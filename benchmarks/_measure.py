"""Timing in interleaved pairs, and how a benchmark prints what it found."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

# one thread in every library, also in those that read the environment once
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of this process for one call, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def interleaved(
    ours: Callable[[], Any], reference: Callable[[], Any], *, pairs: int, warm_up: int = 1
) -> tuple[list[float], list[float]]:
    """CPU seconds of both, call by call, alternating which of a pair goes first."""
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(-warm_up, pairs):
        order = (0, 1) if pair % 2 else (1, 0)
        for which in order:
            seconds, _ = cpu_seconds((ours, reference)[which])
            if pair >= 0:
                times[which].append(seconds)
    return times


def ratios(ours: list[float], reference: list[float]) -> dict[str, float]:
    """Ratio ours / reference of each pair: median, least, largest."""
    found = sorted(a / b for a, b in zip(ours, reference, strict=True))
    return {
        "ratio": round(statistics.median(found), 4),
        "ratio_min": round(found[0], 4),
        "ratio_max": round(found[-1], 4),
        "seconds_ours": round(statistics.median(ours), 4),
        "seconds_hooks": round(statistics.median(reference), 4),
        "pairs": len(found),
    }


def conditions(model: Any) -> dict[str, Any]:
    """What was run, and with which versions."""
    import nnsight
    import torch
    import transformers

    config = model.module.config
    return {
        "model": model.name,
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "n_heads": model.n_heads,
        "vocab_size": config.vocab_size,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "clock": "time.process_time",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "nnsight": nnsight.__version__,
        },
    }


def parser(description: str, *, pairs: int) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    out = argparse.ArgumentParser(description=description)
    out.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    out.add_argument("--quick", action="store_true", help="a tiny model: checks, not timings")
    out.add_argument(
        "--pairs", type=int, default=pairs, help=f"interleaved pairs (default {pairs})"
    )
    return out


def show(found: dict[str, Any], *, as_json: bool) -> None:
    """Print the result as JSON or as a table."""
    if as_json:
        print(json.dumps(found))
        return
    flat = {}
    for key, value in found.items():
        if not isinstance(value, dict):
            flat[key] = value
            continue
        for name, of in value.items():  # the pairs asked for are not a name: say of what they are
            flat[name if isinstance(name, str) else f"{key} {name}"] = of
    width = max(map(len, flat))
    for key, value in flat.items():
        print(f"{key:<{width}}  {value}")
