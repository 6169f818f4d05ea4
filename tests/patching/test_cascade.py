"""What heads do to one another and to the metric directly, against plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_nn.attribution import Metric
from refusal_nn.patching._baseline import Baseline
from refusal_nn.patching._cascade import cascade, direct_attribution
from refusal_nn.store import MemoryRecorder
from refusal_nn.tracing._align import align
from tests.families import D_HEAD, N_HEADS, N_LAYERS, plain_module, tiny_model
from tests.patching.conftest import made_pairs
from tests.tracing import _hooks

FAMILIES = ("llama", "gpt2", "neox", "gemma2")
HEADS = [(0, 1), (1, 0), (1, 3), (2, 2)]
TOKENS = (7, 8, 9)
METRIC = Metric.refusal_log_odds(TOKENS)


def baseline(family: str, backend: str = "local") -> Baseline:
    pairs = made_pairs(4)
    aligned = align(tiny_model(family, backend=backend), pairs)
    nothing = np.zeros(len(pairs))
    return Baseline(pairs, aligned, nothing + 1, nothing, ())


def fallen(family: str, where: list[int] | None = None, backend: str = "local") -> np.ndarray:
    model = tiny_model(family, backend=backend)
    found = cascade(
        model,
        baseline(family, backend),
        METRIC,
        HEADS,
        positions=where,
        rows=6,
        recorder=MemoryRecorder(),
    )
    assert found["src"].values.tolist() == ["a0.h1", "a1.h0", "a1.h3", "a2.h2"]
    return found["cascade"].values


@pytest.mark.parametrize("where", [None, [-2, -1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_falls_equals_hooks(family, where):
    module, base = plain_module(family), baseline(family)
    overlap, whole = np.zeros((4, 4)), np.zeros((4, 4))
    for clean_row, corrupted_row in zip(
        base.aligned.clean_rows, base.aligned.corrupted_rows, strict=True
    ):
        clean, corrupted = (
            _hooks.everything(module, family, _hooks.pad_rows([row]))
            for row in (clean_row, corrupted_row)
        )
        for i, (layer, head) in enumerate(HEADS):
            part = slice(head * D_HEAD, (head + 1) * D_HEAD)

            def change(x, layer=layer, part=part, other=corrupted):
                x = x.clone()
                for p in range(x.shape[1]) if where is None else where:
                    x[:, p, part] = other["z", layer].flatten(-2)[:, p, part]
                return x

            changes = [(*_hooks.place(family, layer, "z"), change)]
            patched = _hooks.everything(module, family, _hooks.pad_rows([clean_row]), changes)
            for j, (to, h) in enumerate(HEADS):
                d = (clean["z", to] - corrupted["z", to])[0, :, h].double()
                moved = (patched["z", to] - corrupted["z", to])[0, :, h].double()
                overlap[i, j] += float((moved * d).sum())
                whole[i, j] += float((d * d).sum())
    expected = 1 - overlap / whole
    later = np.array([[b[0] > a[0] for b in HEADS] for a in HEADS])
    found = fallen(family, where)
    assert np.isnan(found[~later]).all()
    assert np.abs(found[later] - expected[later]).max() < 1e-4
    assert np.abs(expected[later]).max() > 1e-2, "nothing fell, so the test shows nothing"


def _writes(family: str, module: torch.nn.Module, z: torch.Tensor, layer: int) -> torch.Tensor:
    """What attention writes to the residual stream, from z of the last token, by hand."""
    layout = _hooks.LAYOUTS[family]
    block = f"{layout.blocks}.{layer}"
    written = module.get_submodule(f"{block}.{layout.out}")(z)
    if layout.attn_write != layout.out:
        written = module.get_submodule(f"{block}.{layout.attn_write}")(written)
    return written


@pytest.mark.parametrize("family", [*FAMILIES, "olmo2", "phi"])
def test_direct_attribution_equals_a_hand_made_gradient(family):
    """Moving a head's z by a little of its difference, everything downstream held, moves the metric
    by its direct attribution, where no norm follows; behind one, heads add up to what attention
    writes."""
    model, module, base = tiny_model(family), plain_module(family), baseline(family)
    found = direct_attribution(model, base, METRIC, rows=8, recorder=MemoryRecorder())
    assert found.shape == (4, N_LAYERS, N_HEADS)
    sandwich = _hooks.LAYOUTS[family].attn_write != _hooks.LAYOUTS[family].out
    final_norm = module.get_submodule(_hooks.LAYOUTS[family].final_norm)
    head = module.get_output_embeddings()
    for k in range(4):
        runs = [
            _hooks.everything(module, family, _hooks.pad_rows([rows[k]]))
            for rows in (base.aligned.clean_rows, base.aligned.corrupted_rows)
        ]
        final = runs[0]["resid_post", N_LAYERS - 1][:, -1].clone().requires_grad_(True)
        logits = head(final_norm(final)).double()
        if family == "gemma2":
            cap = module.config.final_logit_softcapping
            logits = torch.tanh(logits / cap) * cap
        p = logits.softmax(-1)[0, list(TOKENS)].sum()
        (torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)).backward()
        slope = final.grad[0]
        for layer in range(N_LAYERS):
            z = [run["z", layer][0, -1] for run in runs]
            with torch.no_grad():
                if sandwich:
                    write = [_writes(family, module, x.flatten()[None], layer)[0] for x in z]
                    whole = float((write[0] - write[1]) @ slope)
                    assert found[k, layer].sum() == pytest.approx(whole, rel=1e-3, abs=1e-5)
                    continue
                for h in range(N_HEADS):
                    difference = torch.zeros_like(z[0])
                    difference[h] = (z[0] - z[1])[h]
                    zero = _writes(family, module, torch.zeros(1, 32), layer)
                    write = _writes(family, module, difference.flatten()[None], layer) - zero
                    assert found[k, layer, h] == pytest.approx(
                        float(write[0] @ slope), rel=1e-3, abs=1e-6
                    )
    assert np.abs(found).max() > 1e-3


def test_both_run_where_the_package_is_not_installed():
    assert np.allclose(
        fallen("llama"), fallen("llama", backend="dry-run"), equal_nan=True, atol=1e-5
    )
    here, there = (
        direct_attribution(
            tiny_model("llama", backend=backend),
            baseline("llama", backend),
            METRIC,
            rows=8,
            recorder=MemoryRecorder(),
        )
        for backend in ("local", "dry-run")
    )
    assert np.allclose(here, there, atol=1e-5)


def test_heads_of_one_block_have_no_cascade():
    found = cascade(
        tiny_model("llama"),
        baseline("llama"),
        METRIC,
        [(1, 0), (1, 2)],
        positions=None,
        rows=8,
        recorder=MemoryRecorder(),
    )
    assert np.isnan(found["cascade"].values).all()
