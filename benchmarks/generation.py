"""Greedy generation under all-layer directional ablation: refusal_nn against plain PyTorch hooks.

A direction is projected out of the input of every block and of what every attention and MLP module
writes, at the prompt and at every generated token. Both call the model's own ``generate`` with the
same options; the tokens must be identical.

    python benchmarks/generation.py --json
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import _measure
import _reference
import numpy as np
import torch
from _model import make_model, make_prompts

from refusal_nn.interventions import DirectionalAblation
from refusal_nn.tracing import generate_request, pad, run

ROWS = 4
NEW_TOKENS = 24


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and return the result."""
    args = _measure.parser("Ablated generation against plain hooks.", pairs=11).parse_args(argv)
    torch.set_num_threads(1)
    model = make_model("quick" if args.quick else "gpt2-small")
    pairs = min(args.pairs, 2) if args.quick else args.pairs
    batch = pad(model.chat.tokens(make_prompts(ROWS).train.texts)[:ROWS], model.pad_token)
    direction = np.random.default_rng(0).standard_normal(model.d_model)
    interventions = [DirectionalAblation(direction)]
    request = generate_request(model, batch, interventions, max_new_tokens=NEW_TOKENS)
    vector = torch.tensor(direction, dtype=model.dtype)

    def ours() -> torch.Tensor:
        made = generate_request(model, batch, interventions, max_new_tokens=NEW_TOKENS)
        return run(model, [made])[0]["ids"]

    def reference() -> torch.Tensor:
        inputs = dict(request.inputs)
        return _reference.generate(model.module, inputs, vector, **request.options)[
            :, batch.width :
        ]

    def unedited() -> torch.Tensor:
        made = generate_request(model, batch, max_new_tokens=NEW_TOKENS)
        return run(model, [made])[0]["ids"]

    mine, theirs, plain = ours(), reference(), unedited()
    found = {
        "benchmark": "generation",
        **_measure.ratios(*_measure.interleaved(ours, reference, pairs=pairs)),
        "tokens_identical": bool(torch.equal(mine, theirs)),
        # an ablation that changes no token would make the comparison empty
        "tokens_changed_by_ablation": not torch.equal(mine, plain),
        "distinct_new_tokens": len(set(mine.flatten().tolist())),
        "rows": ROWS,
        "prompt_tokens": batch.width,
        "new_tokens": mine.shape[1] - batch.width,
        "sites_per_step": 3 * model.n_layers,
        **_measure.conditions(model),
    }
    _measure.show(found, as_json=args.json)
    return found


if __name__ == "__main__":
    main()
