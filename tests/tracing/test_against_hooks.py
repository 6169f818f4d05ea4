"""Captures, interventions and generation equal plain PyTorch hooks on every family."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch

from refusal_nn.interventions import (
    ActivationAddition,
    DirectionalAblation,
    Intervention,
    MeanAblation,
    Patch,
    ZeroAblation,
)
from refusal_nn.testing import (
    D_MODEL,
    FAMILIES,
    N_LAYERS,
    PARALLEL,
    hooks,
    plain_module,
    tiny_model,
)
from refusal_nn.tracing import (
    Batch,
    Capture,
    completions,
    forward_request,
    generate_request,
    pad,
    run,
)

ROWS = [[7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23, 24, 25, 26, 27, 28]]
LENGTHS = [len(row) for row in ROWS]
LEFT_32, RIGHT_64 = (torch.float32, "left"), (torch.float64, "right")
CASES = [
    pytest.param(f, dtype, side, id=f"{f}-{str(dtype).removeprefix('torch.')}-{side}")
    for f in FAMILIES
    for dtype in (torch.float32, torch.float64)
    for side in ("left", "right")
    # float64, eager attention and left padding together are NaN in transformers
    if not (f == "gemma2" and dtype == torch.float64 and side == "left")
]
# captures are compared on both sides in both dtypes; edits on one side each, to save time
EDIT_CASES = [case for case in CASES if case.values[1:] in (LEFT_32, RIGHT_64)]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
SITES = (
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_out",
    "resid_post",
)


def vector(seed: int, dtype: torch.dtype = torch.float32, size: int = D_MODEL) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sites_of(family: str) -> list[str]:
    return [s for s in SITES if not (s == "resid_mid" and family in PARALLEL)]


def ours(
    family: str,
    dtype: torch.dtype,
    side: str,
    interventions: Sequence[Intervention] = (),
    rows: Sequence[Sequence[int]] = ROWS,
) -> dict[str, torch.Tensor]:
    """Every site of every layer at the last three tokens of each row, and those logits."""
    model = tiny_model(family, dtype)
    captures = [Capture(site, site, positions=(-3, -2, -1)) for site in sites_of(family)]
    captures += [Capture(s, s, positions=(-3, -2, -1)) for s in ("embed", "final_norm", "logits")]
    batch = pad(rows, model.pad_token, padding_side=side)
    (out,) = run(model, [forward_request(model, batch, captures, interventions)])
    return out


def theirs(
    family: str,
    dtype: torch.dtype,
    side: str,
    changes: Sequence[tuple[str, str, hooks.Change]] = (),
    rows: Sequence[Sequence[int]] = ROWS,
) -> dict[str, torch.Tensor]:
    """The same by hooks."""
    inputs = hooks.pad_rows(rows, side)
    found = hooks.everything(plain_module(family, dtype), family, inputs, changes)
    lengths = [len(row) for row in rows]
    last = {k: hooks.at_end(x, lengths, side, (-3, -2, -1)) for k, x in found.items()}
    out = {s: torch.stack([last[s, i] for i in range(N_LAYERS)]) for s in sites_of(family)}
    return out | {s: last[s, -1] for s in ("embed", "final_norm", "logits")}


def error(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference over all sites, as a fraction of each site's largest magnitude."""
    assert a.keys() == b.keys()
    for site in a:
        assert a[site].shape == b[site].shape, site
        assert a[site].dtype == b[site].dtype, site
        assert torch.isfinite(b[site]).all(), site
    return max(float((a[s] - b[s]).abs().max() / b[s].abs().max()) for s in a)


@pytest.mark.parametrize(("family", "dtype", "side"), CASES)
def test_captures_equal_hooks_at_every_site(family, dtype, side):
    assert error(ours(family, dtype, side), theirs(family, dtype, side)) <= TOLERANCE[dtype]


@pytest.mark.parametrize(("family", "dtype", "side"), EDIT_CASES)
def test_directional_ablation_equals_hooks(family, dtype, side):
    r = vector(1, dtype)
    edited = ours(family, dtype, side, [DirectionalAblation(r)])
    changes = hooks.everywhere(plain_module(family, dtype), family, hooks.remove(r))
    assert error(edited, theirs(family, dtype, side, changes)) <= TOLERANCE[dtype]
    assert error(edited, theirs(family, dtype, side)) > 0.05, "the ablation changed nothing"


@pytest.mark.parametrize(("family", "dtype", "side"), EDIT_CASES)
def test_activation_addition_equals_hooks(family, dtype, side):
    v = vector(2, dtype)
    edited = ours(family, dtype, side, [ActivationAddition(v, layers=[1], coefficient=-0.5)])
    changes = [(*hooks.place(family, 1, "resid_pre"), hooks.add(-0.5 * v))]
    assert error(edited, theirs(family, dtype, side, changes)) <= TOLERANCE[dtype]
    assert error(edited, theirs(family, dtype, side)) > 0.05, "the addition changed nothing"


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_and_mean_ablation_equal_hooks(family):
    mean = vector(3)
    edited = ours(
        family,
        torch.float32,
        "left",
        [ZeroAblation("attn_out", layers=[0]), MeanAblation(mean, "mlp_out", layers=[1])],
    )
    changes = [
        (*hooks.place(family, 0, "attn_out"), torch.zeros_like),
        (*hooks.place(family, 1, "mlp_out"), hooks.put(mean)),
    ]
    assert error(edited, theirs(family, torch.float32, "left", changes)) <= 1e-5


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_at_positions_equals_hooks(family, side):
    value = torch.stack([vector(10 + i) for i in range(6)]).reshape(3, 2, D_MODEL)

    def put(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        for row, length in enumerate(LENGTHS):
            end = x.shape[1] if side == "left" else length
            x[row, end - 3], x[row, end - 1] = value[row, 0], value[row, 1]
        return x

    patch = Patch(value, "resid_post", layers=[1], positions=[-3, -1])
    edited = ours(family, torch.float32, side, [patch])
    changes = [(*hooks.place(family, 1, "resid_post"), put)]
    assert error(edited, theirs(family, torch.float32, side, changes)) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_is_the_sum_of_what_the_map_says_is_written(family):
    found = ours(family, torch.float64, "right")
    total = found["resid_pre"] + found["attn_out"] + found["mlp_out"]
    scale = found["resid_post"].abs().max()
    assert (found["resid_post"] - total).abs().max() <= 1e-12 * scale
    assert torch.equal(found["resid_post"][:-1], found["resid_pre"][1:])


def _without_head(module: torch.nn.Module, family: str, layer: int, head: int) -> None:
    """Zero the columns of the output projection that read a head: removes it from the weights."""
    path = f"{hooks.LAYOUTS[family].blocks}.{layer}.{hooks.LAYOUTS[family].out}"
    weight = module.get_submodule(path).weight.data
    columns = slice(8 * head, 8 * head + 8)
    if family == "gpt2":  # its Conv1D keeps the transpose
        weight[columns] = 0
    else:
        weight[:, columns] = 0


def _without_values(module: torch.nn.Module, family: str, layer: int, head: int) -> None:
    """Zero the rows that make a head's values."""
    path, part = hooks.LAYOUTS[family].projection("v")
    projection = module.get_submodule(f"{hooks.LAYOUTS[family].blocks}.{layer}.{path}")
    if isinstance(part, int):
        start = 24 * head + 8 * part
    else:
        start = (part.start if part is not None else 0) + 8 * head
    rows = slice(start, start + 8)
    if family == "gpt2":
        projection.weight.data[:, rows] = 0
    else:
        projection.weight.data[rows] = 0
    if projection.bias is not None:
        projection.bias.data[rows] = 0


@pytest.mark.parametrize(("site", "cut"), [("z", _without_head), ("v", _without_values)])
@pytest.mark.parametrize("family", FAMILIES)
def test_ablating_a_head_equals_removing_it_from_the_weights(family, site, cut):
    (logits,) = run(
        tiny_model(family),
        [
            forward_request(
                tiny_model(family),
                pad(ROWS, 0),
                [Capture("logits", "logits", positions=(-3, -1))],
                [ZeroAblation(site, layers=[1], heads=[1])],
            )
        ],
    )
    module = copy.deepcopy(plain_module(family))
    cut(module, family, 1, 1)
    with torch.no_grad():
        expected = module(**hooks.pad_rows(ROWS)).logits[:, [-3, -1]]
        clean = plain_module(family)(**hooks.pad_rows(ROWS)).logits[:, [-3, -1]]
    scale = expected.abs().max()
    assert (logits["logits"] - expected).abs().max() <= 1e-5 * scale
    assert (clean - expected).abs().max() > 1e-3 * scale


def _mlp_branch(
    module: torch.nn.Module, family: str, layer: int, mid: torch.Tensor
) -> torch.Tensor:
    """What a block's second half adds to the residual stream ``mid``, computed by hand."""
    block = module.get_submodule(f"{hooks.LAYOUTS[family].blocks}.{layer}")
    if family == "gpt2":
        return block.mlp(block.ln_2(mid))
    if family == "olmo2":
        return block.post_feedforward_layernorm(block.mlp(mid))
    if family in ("gemma2", "gemma3"):
        return block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(mid)))
    return block.mlp(block.post_attention_layernorm(mid))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in PARALLEL])
def test_writing_resid_mid_changes_the_mlp_and_what_passes_it_by(family):
    r, v, layer = vector(4), vector(5), 1
    interventions = [
        DirectionalAblation(r, sites=["resid_mid"], layers=[layer]),
        ActivationAddition(v, site="resid_mid", layers=[layer]),
    ]
    found = ours(family, torch.float32, "left", interventions)
    module = plain_module(family)
    clean = theirs(family, torch.float32, "left")
    with torch.no_grad():
        mid = hooks.add(v)(hooks.remove(r)(clean["resid_mid"][layer]))
        post = mid + _mlp_branch(module, family, layer, mid)
    assert (found["resid_mid"][layer] - mid).abs().max() <= 1e-5 * mid.abs().max()
    assert (found["resid_post"][layer] - post).abs().max() <= 1e-5 * post.abs().max()
    assert torch.equal(
        found["resid_pre"][layer], ours(family, torch.float32, "left")["resid_pre"][layer]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_under_ablation_is_token_identical_to_hooks(family):
    model, module = tiny_model(family), plain_module(family)
    r = vector(6)
    ours_ = _generate(family, [DirectionalAblation(r)])
    assert ours_ == hooks.greedy(
        module, ROWS, hooks.everywhere(module, family, hooks.remove(r)), n=8
    )
    clean = _generate(family, [])
    assert clean == hooks.greedy(module, ROWS, [], n=8)
    assert ours_ != clean, "the ablation is invisible in the tokens, so the test shows nothing"
    assert model.verified


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_under_addition_is_token_identical_to_hooks(family):
    module, v = plain_module(family), vector(7)
    changes = [(*hooks.place(family, 1, "resid_pre"), hooks.add(v))]
    found = _generate(family, [ActivationAddition(v, layers=[1])])
    assert found == hooks.greedy(module, ROWS, changes, n=8)
    assert found != _generate(family, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_of_prompt_positions_acts_on_them_alone_in_generation(family):
    module, v = plain_module(family), 2 * vector(8)
    found = _generate(family, [ActivationAddition(v, layers=[1], positions=[-2, -1])])

    expected = []
    for row in ROWS:

        def change(x: torch.Tensor, n: int = len(row)) -> torch.Tensor:
            x = x.clone()
            x[:, n - 2 : n] += v
            return x

        changes = [(*hooks.place(family, 1, "resid_pre"), change)]
        expected += hooks.greedy(module, [row], changes, n=8)
    assert found == expected
    assert found != _generate(family, [])
    assert found != _generate(family, [ActivationAddition(v, layers=[1])])


def _generate(family: str, interventions: Sequence[Intervention]) -> list[list[int]]:
    model = tiny_model(family)
    batch: Batch = pad(ROWS, model.pad_token)
    (out,) = run(model, [generate_request(model, batch, interventions, max_new_tokens=8)])
    return completions(model, out["ids"])
