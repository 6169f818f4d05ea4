"""Find the circuit that decides to refuse, and test it on pairs it was not found on.

    python examples/find_circuit.py --stores stores --figures figures

The same lines run a model on a server: add ``--backend ndif``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import refusal_nn as rn


def main() -> None:
    """Attribute on training pairs, choose a size on validation pairs, test on test pairs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-refuser")
    parser.add_argument("--backend", default="local")
    parser.add_argument("--pairs", default="tiny-pairs")
    parser.add_argument("--stores", type=Path, default=Path("stores"))
    parser.add_argument("--figures", type=Path, default=Path("figures"))
    parser.add_argument("--draws", type=int, default=99, help="random circuits of equal size")
    options = parser.parse_args()
    options.figures.mkdir(parents=True, exist_ok=True)

    model = rn.load_model(options.model, backend=options.backend)
    pairs = rn.load_pairs(options.pairs)
    tokens = rn.directions.discover_refusal_tokens(model, rn.load_prompts("tiny-bench").train)
    metric = rn.attribution.Metric.refusal_log_odds(tokens)

    # 1. What every edge carries, for every pair: linear, so circuits can be resampled for free.
    scores = rn.attribution.attribute(model, pairs.train, metric, method="eap-ig")
    for edge in rn.attribution.ranked(scores, 10):
        print(f"{edge['src']:>8} -> {edge['dst']:10} {edge['score']:+.3f} ± {edge['se']:.3f}")

    # 2. The smallest circuit that does nine tenths of what the model does.
    whole = rn.circuits.discover(scores, fraction=1.0)
    found = rn.circuits.smallest(model, whole, pairs.val, metric, target=0.9)
    circuit = found.circuit
    print(f"\n{circuit.n_kept} of {circuit.n_total} edges")

    # 3. The same circuit on pairs that neither scores nor size have seen, and chance beside it.
    tested = rn.circuits.evaluate(model, circuit, pairs.test, metric, draws=options.draws)
    value, low, high = (float(tested[f"faithfulness{end}"]) for end in ("", "_low", "_high"))
    print(f"faithfulness on test pairs: {value:.3f} [{low:.3f}, {high:.3f}]")
    null = tested["null"].to_dataset()
    for name in null["null"].values:
        print(f"{name} circuits of equal size: p = {float(null['p_value'].sel(null=name)):.3f}")

    # 4. Keep it: a labelled store, a drawing, a file for other programs.
    kept = options.stores / "refusal-circuit.zarr"
    if not kept.exists():
        rn.save(tested, kept)
    drawing = rn.plots.circuit_drawing(circuit.to_dataset())
    rn.plots.save(drawing, options.figures / "refusal-circuit.svg")
    rn.circuits.export(circuit, options.figures / "refusal-circuit.json", d_model=model.d_model)
    print(f"kept {kept} and figures in {options.figures}")


if __name__ == "__main__":
    main()
