"""On a CUDA device: where tensors are, and that the numbers agree with the CPU's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_nn.interventions import ActivationAddition, DirectionalAblation, MeanAblation
from refusal_nn.models import Model, load_model, quiet
from refusal_nn.testing import (
    D_MODEL,
    FAMILIES,
    hooks,
    plain_module,
    tiny_module,
    tiny_tokenizer,
    wrap,
)
from refusal_nn.tracing import (
    Capture,
    Ref,
    capture_tokens,
    completions,
    forward_request,
    generate_request,
    pad,
    residual_error,
    run,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]
ROWS = [[7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24, 25, 26]]
R = np.random.default_rng(0).normal(size=D_MODEL)
# float32 rounding of a few dozen additions; 8 and 11 bits of mantissa over three blocks
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float64: 1e-10}


@pytest.fixture(autouse=True)
def full_float32():
    """Without TF32, which has 10 bits of mantissa."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(family: str, dtype: torch.dtype) -> Model:
    return wrap(tiny_module(family, dtype=dtype).to("cuda"), name=family)


def captures() -> list[Capture]:
    sites = ("resid_pre", "attn_out", "mlp_out", "resid_post", "z", "q")
    return [
        *(Capture(site, site, positions=(-3, -1)) for site in sites),
        Capture("logits", "logits", positions=(-1,)),
    ]


def edits() -> list:
    return [
        DirectionalAblation(R),
        ActivationAddition(R, layers=[1], positions=[-1]),
        MeanAblation(R, "mlp_out", layers=[2]),
    ]


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_captures_under_edits_agree_with_the_cpu(family, dtype):
    if dtype == torch.float64 and family == "gemma2":
        pytest.skip("float64, eager attention and left padding are NaN in transformers")
    cpu = wrap(tiny_module(family, dtype=dtype))
    for interventions in ([], edits()):
        a, b = (
            capture_tokens(model, ROWS, captures(), interventions)
            for model in (on_gpu(family, dtype), cpu)
        )
        for name in a:
            assert np.isfinite(a[name]).all(), name
            error = np.abs(a[name] - b[name]).max() / np.abs(b[name]).max()
            assert error <= LIMIT[dtype], (name, error)


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_under_ablation_equals_hooks_on_the_cpu(family):
    model = on_gpu(family, torch.float32)
    batch = pad(ROWS, model.pad_token)
    request = generate_request(model, batch, [DirectionalAblation(R)], max_new_tokens=8)
    (out,) = run(model, [request])
    module = plain_module(family)
    changes = hooks.everywhere(module, family, hooks.remove(torch.tensor(R, dtype=torch.float32)))
    found = completions(model, out["ids"])
    assert found == hooks.greedy(module, ROWS, changes, n=8)
    (clean,) = run(model, [generate_request(model, batch, max_new_tokens=8)])
    assert found != completions(model, clean["ids"])


def test_a_model_is_put_where_it_was_asked_for(tmp_path):
    with quiet():
        tiny_module("llama").save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
    for device, kind in ((None, "cuda"), ("cuda:0", "cuda"), ("cpu", "cpu")):
        model = load_model(str(tmp_path), device=device)
        assert model.device.type == kind
        assert {p.device.type for p in model.module.parameters()} == {kind}
        assert model.identity()["device"] == kind


def test_device_auto_spreads_a_model_and_gives_the_same_numbers(tmp_path):
    pytest.importorskip("accelerate", reason="the accelerate extra is not installed")
    with quiet():
        tiny_module("llama").save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
    auto, cpu = (load_model(str(tmp_path), device=d) for d in ("auto", "cpu"))
    assert auto.device.type == "cuda"
    a, b = (capture_tokens(m, ROWS, captures(), edits()) for m in (auto, cpu))
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=0, atol=1e-5 * np.abs(b[name]).max())


def test_results_come_back_on_the_cpu_and_held_ones_stay():
    model = on_gpu("llama", torch.float32)
    batch = pad(ROWS, model.pad_token)
    keep = Capture("p", "logits", positions=(-1,), reduce="log_probs", keep=True)
    kl = Capture("kl", "logits", positions=(-1,), reduce="kl", args={"baseline": Ref(0, "p")})
    held, found = run(
        model, [forward_request(model, batch, [keep]), forward_request(model, batch, [kl])]
    )
    assert held == {}
    assert found["kl"].device.type == "cpu"
    assert found["kl"].abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_residual_stream_adds_up_on_the_gpu(dtype):
    for family in FAMILIES:
        error = residual_error(on_gpu(family, dtype)).max()
        assert error < (1e-6 if dtype == torch.float32 else 2e-2), family


def test_a_batch_too_large_says_so():
    from refusal_nn.errors import BackendError

    model = on_gpu("llama", torch.float32)
    free, _ = torch.cuda.mem_get_info()
    filler = torch.empty(int(free * 0.97) // 4, dtype=torch.float32, device="cuda")
    try:
        batch = pad([[7] * 60] * 60_000, 0)
        with pytest.raises(BackendError, match=r"out of memory on cuda.* smaller --batch-size"):
            run(model, [forward_request(model, batch, [Capture("x", "logits")])])
    finally:
        del filler
        torch.cuda.empty_cache()
