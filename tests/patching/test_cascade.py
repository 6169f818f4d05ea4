"""What heads do to one another and to the metric directly, against plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from refusal_nn import stats
from refusal_nn.attribution import Metric
from refusal_nn.contrasts import Contrast, Measured
from refusal_nn.patching._cascade import _effects, cascade, direct_attribution
from refusal_nn.store import MemoryRecorder
from refusal_nn.testing import D_HEAD, N_HEADS, N_LAYERS, hooks, plain_module, tiny_model
from tests.patching.conftest import made_pairs

FAMILIES = ("llama", "gpt2", "neox", "gemma2")
HEADS = [(0, 1), (1, 0), (1, 3), (2, 2)]
TOKENS = (7, 8, 9)
METRIC = Metric.refusal_log_odds(TOKENS)


def log_odds(module: torch.nn.Module, family: str, row, changes=()) -> float:
    found = hooks.everything(module, family, hooks.pad_rows([row]), changes)
    p = found["logits", -1][0, -1].double().softmax(-1)[list(TOKENS)].sum()
    return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))


def baseline(family: str, backend: str = "local") -> Measured:
    """Pairs with the metric of their two runs, from plain PyTorch."""
    pairs, module = made_pairs(4), plain_module(family)
    contrast = Contrast(tiny_model(family, backend=backend), pairs, METRIC)
    sides = (contrast.aligned.clean_rows, contrast.aligned.corrupted_rows)
    metrics = (np.array([log_odds(module, family, row) for row in rows]) for rows in sides)
    return Measured(contrast, *metrics)


def effects(
    family: str, where: list[int] | None = None, backend: str = "local", rows: int = 6
) -> xr.Dataset:
    return _effects(baseline(family, backend), HEADS, where, rows, MemoryRecorder())


def put(family: str, head: tuple[int, int], z: dict, where: list[int] | None):
    """A change of one head's output to that of another run."""
    layer, h = head
    part = slice(h * D_HEAD, (h + 1) * D_HEAD)

    def change(x):
        x = x.clone()
        for p in range(x.shape[1]) if where is None else where:
            x[:, p, part] = z["z", layer].flatten(-2)[:, p, part]
        return x

    return (*hooks.place(family, layer, "z"), change)


@pytest.mark.parametrize("where", [None, [-2, -1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_falls_equals_hooks(family, where):
    module, base = plain_module(family), baseline(family)
    found = effects(family, where)
    assert found["dst"].values.tolist() == ["a0.h1", "a1.h0", "a1.h3", "a2.h2"]
    whole, gone = np.zeros((4, 4)), np.zeros((3, 4, 4))
    for k, rows in enumerate(
        zip(base.aligned.clean_rows, base.aligned.corrupted_rows, strict=True)
    ):
        runs = [hooks.everything(module, family, hooks.pad_rows([row])) for row in rows]
        before = [log_odds(module, family, row) for row in rows]

        def moved(head, into_clean, into_corrupted, rows=rows, before=before):
            """What the head's outputs of two runs move the metric by, in both runs."""
            here = put(family, head, into_clean, where)
            there = put(family, head, into_corrupted, where)
            return (
                before[0]
                - log_odds(module, family, rows[0], [here])
                + log_odds(module, family, rows[1], [there])
                - before[1]
            )

        for j, dst in enumerate(HEADS):
            whole[k, j] = moved(dst, runs[1], runs[0])
            for i, src in enumerate(HEADS[:3]):
                if dst[0] > src[0]:
                    exchanged = [put(family, src, runs[1], where)]
                    inputs = hooks.pad_rows([rows[0]])
                    after = hooks.everything(module, family, inputs, exchanged)
                    kept = log_odds(module, family, rows[1], [put(family, dst, after, where)])
                    gone[i, k, j] = whole[k, j] - (
                        log_odds(module, family, rows[0], [put(family, dst, after, where)])
                        - log_odds(module, family, rows[0], [put(family, dst, runs[1], where)])
                        + kept
                        - before[1]
                    )
    assert np.abs(found["effect_whole"].values - whole).max() < 1e-4
    assert np.abs(found["effect_fallen"].values - gone).max() < 1e-4
    assert np.abs(gone).max() > 1e-3, "nothing fell, so the test shows nothing"


def test_what_falls_does_not_depend_on_the_batch_size():
    one, many = effects("llama", rows=1), effects("llama", rows=64)
    for name in ("effect_whole", "effect_fallen"):
        assert np.allclose(one[name], many[name], atol=1e-5)


def test_a_head_that_does_nothing_has_no_share_to_lose():
    """Random heads push either way; a share of nothing would be any number."""
    base = baseline("llama")
    found = cascade(base, HEADS, positions=None, rows=8, recorder=MemoryRecorder())["cascade"]
    whole = effects("llama")["effect_whole"]
    sure = stats.mean(whole.values, cluster=base.pairs.family).low > 0
    later = np.array([[b[0] > a[0] for b in HEADS] for a in HEADS])
    assert (np.isfinite(found.values) == (later & sure)).all()
    assert not sure.all()


def _writes(family: str, module: torch.nn.Module, z: torch.Tensor, layer: int) -> torch.Tensor:
    """What attention writes to the residual stream, from z of the last token, by hand."""
    layout = hooks.LAYOUTS[family]
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
    module, base = plain_module(family), baseline(family)
    found = direct_attribution(base, rows=8, recorder=MemoryRecorder())
    assert found.shape == (4, N_LAYERS, N_HEADS)
    sandwich = hooks.LAYOUTS[family].attn_write != hooks.LAYOUTS[family].out
    final_norm = module.get_submodule(hooks.LAYOUTS[family].final_norm)
    head = module.get_output_embeddings()
    for k in range(4):
        runs = [
            hooks.everything(module, family, hooks.pad_rows([rows[k]]))
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
    here, there = (effects("llama", backend=backend) for backend in ("local", "dry-run"))
    assert np.allclose(here["effect_fallen"], there["effect_fallen"], atol=1e-5)
    here, there = (
        direct_attribution(
            baseline("llama", backend),
            rows=8,
            recorder=MemoryRecorder(),
        )
        for backend in ("local", "dry-run")
    )
    assert np.allclose(here, there, atol=1e-5)


def test_heads_of_one_block_have_no_cascade():
    found = cascade(
        baseline("llama"),
        [(1, 0), (1, 2)],
        positions=None,
        rows=8,
        recorder=MemoryRecorder(),
    )
    assert np.isnan(found["cascade"].values).all()
