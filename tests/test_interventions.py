"""Interventions check themselves, survive JSON, compose in order, and act where they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from refusal_nn.errors import InterventionError, ModelError, RequestError
from refusal_nn.interventions import (
    ActivationAddition,
    DirectionalAblation,
    MeanAblation,
    Patch,
    ZeroAblation,
    from_json,
    to_json,
)
from refusal_nn.testing import D_HEAD, D_MODEL, N_HEADS, N_LAYERS, tiny_model
from refusal_nn.tracing import Capture, Start, build_plan, capture_tokens, forward_request, pad, run

ROWS = [[7, 8, 9, 10], [11, 12, 13], [14, 15, 16, 17, 18]]
R = np.random.default_rng(0).normal(size=D_MODEL)
V = np.random.default_rng(1).normal(size=D_MODEL)

REFUSED_AT_ONCE = {
    "no direction": (lambda: DirectionalAblation(), r"direction is required"),
    "scalar": (lambda: DirectionalAblation(1.0), r"must be a vector, got shape \(\)"),
    "empty": (lambda: DirectionalAblation([]), r"must be a vector, got shape \(0,\)"),
    "nan": (lambda: DirectionalAblation([np.nan, 1]), r"contains NaN or infinity"),
    "site": (
        lambda: DirectionalAblation(R, sites=["resid"]),
        r"no site 'resid'; sites are resid_pr",
    ),
    "logits": (lambda: ZeroAblation("logits"), r"no site 'logits'; sites are"),
    "patch site": (lambda: Patch(V, "hidden"), r"no site 'hidden'"),
    "mean site": (lambda: MeanAblation(V, "hidden"), r"no site 'hidden'"),
    "add everywhere": (lambda: ActivationAddition(V), r"name the layers to add at"),
    "coefficient": (
        lambda: ActivationAddition(V, np.inf, layers=[1]),
        r"coefficient is inf; give a finite number",
    ),
    "when": (lambda: ZeroAblation(when="later"), r"when='later' is not 'all' or 'prompt'"),
    "positive": (
        lambda: ZeroAblation(positions=[0]),
        r"negative \(-1 is the last prompt token\); got \[0\]",
    ),
    "no layers": (lambda: ZeroAblation(layers=[]), r"layers is empty; leave it out"),
    "no heads": (lambda: ZeroAblation("z", heads=[]), r"heads is empty; leave it out"),
    "words": (lambda: ZeroAblation(layers=["two"]), r"layers must be whole numbers, got \['two'\]"),
    "fraction": (lambda: ZeroAblation(layers=[1.5]), r"layers must be whole numbers, got \[1\.5\]"),
    "repeated": (lambda: ActivationAddition(V, layers=[1, 1]), r"layers names 1 twice"),
    "patch needs positions": (
        lambda: Patch(np.zeros((2, 3, D_MODEL))),
        r"position axis needs positions=",
    ),
    "patch positions": (
        lambda: Patch(np.zeros((2, 3, D_MODEL)), positions=[-1]),
        r"3 positions but positions names 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED_AT_ONCE)
def test_a_wrong_intervention_is_refused_when_it_is_made(name):
    make, reason = REFUSED_AT_ONCE[name]
    with pytest.raises(InterventionError, match=reason):
        make()


REFUSED_BY_MODEL = {
    "layer": (ZeroAblation(layers=[3]), r"layer 3 is not in 0\.\.2, the blocks of this model"),
    "negative layer": (ZeroAblation(layers=[-1]), r"layer -1 is not in 0\.\.2"),
    "width": (
        DirectionalAblation(R[:31]),
        r"direction has 31 components, but 'resid_pre' .* has 32",
    ),
    "head width": (MeanAblation(V, "z"), r"mean has 32 components, but 'z' of this model has 8"),
    "no heads there": (
        ZeroAblation("attn_out", heads=[0]),
        r"site 'attn_out' has no heads; use one of q, k, v, z or leave heads out",
    ),
    "head": (ZeroAblation("z", heads=[4]), r"head 4 is not in 0\.\.3, the heads at 'z'"),
    "key head": (ZeroAblation("k", heads=[2]), r"head 2 is not in 0\.\.1, the heads at 'k'"),
    "means": (MeanAblation(np.zeros((2, D_MODEL))), r"mean has 2 rows for 3 layers; give one row"),
    "rows": (DirectionalAblation(np.ones((2, D_MODEL))), r"direction has 2 rows for a batch of 3"),
    "position": (ZeroAblation(positions=[-4]), r"position -4 .* the shortest prompt has 3 tokens"),
    "patch heads": (
        Patch(np.zeros((3, 1, D_HEAD)), "z", positions=[-1]),
        r"\[row, position, head, width\] with 4 heads",
    ),
    "patch some heads": (
        Patch(np.zeros((3, 1, N_HEADS, D_HEAD)), "z", positions=[-1], heads=[0, 1]),
        r"with 2 heads",
    ),
    "patch no heads": (
        Patch(np.zeros((3, 1, 2, D_MODEL)), positions=[-1]),
        r"a value by position is \[row, position, width\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED_BY_MODEL)
def test_one_that_does_not_fit_the_model_is_refused_before_anything_runs(name):
    intervention, reason = REFUSED_BY_MODEL[name]
    with pytest.raises(InterventionError, match=reason):
        forward_request(tiny_model("llama"), pad(ROWS, 0), [], [intervention])


def test_a_site_the_model_lacks_is_refused():
    with pytest.raises(
        ModelError, match=r"no site 'resid_mid': its attention and MLP run in parallel"
    ):
        forward_request(tiny_model("phi"), pad(ROWS, 0), [], [ZeroAblation("resid_mid")])


@pytest.mark.parametrize(
    ("captures", "start", "reason"),
    [
        ([Capture("a", "resid_pre", [3])], None, r"'a': layer 3 is not in 0\.\.2"),
        ([Capture("a", "resid_pre", 0, positions=(-4,))], None, r"position -4 is not inside every"),
        ([Capture("a", "resid_pre", 0, positions=(0,))], None, r"position 0 is not inside every"),
        ([Capture("a", "z"), Capture("a", "q")], None, r"two captures have one name"),
        ([], Start(3, torch.zeros(1)), r"cannot start at layer 3: blocks are 0\.\.2"),
        ([Capture("a", "z", 0)], Start(1, torch.zeros(1)), r"z of layer 0 is before layer 1"),
    ],
)
def test_a_capture_that_does_not_fit_is_refused(captures, start, reason):
    with pytest.raises(InterventionError, match=reason):
        build_plan(
            tiny_model("llama").arch,
            [],
            captures,
            batch=pad([[1] * n for n in (4, 3, 5)], 0),
            start=start,
        )


finite = st.floats(-1e6, 1e6, allow_nan=False)
vectors = arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 5)), elements=finite)
layers = st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)
places = st.fixed_dictionaries(
    {
        "layers": layers,
        "positions": st.none() | st.lists(st.integers(-9, -1), min_size=1, max_size=3, unique=True),
        "heads": st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
        "when": st.sampled_from(["all", "prompt"]),
    }
)
site = st.sampled_from(["resid_pre", "z", "mlp_out", "resid_mid"])
some = st.one_of(
    st.builds(
        lambda d, s, p: DirectionalAblation(d, tuple(s), **p), vectors, st.lists(site), places
    ),
    st.builds(
        lambda d, c, s, p: ActivationAddition(d, c, s, **{**p, "layers": p["layers"] or [0]}),
        vectors,
        finite,
        site,
        places,
    ),
    st.builds(lambda s, p: ZeroAblation(s, **p), site, places),
    st.builds(lambda m, s, p: MeanAblation(m, s, **p), vectors, site, places),
    st.builds(lambda v, s, p: Patch(v, s, **p), vectors, site, places),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(some, max_size=4))
def test_json_gives_back_the_same_interventions(interventions):
    text = to_json(interventions)
    back = from_json(text)
    assert back == interventions
    assert [hash(i) for i in back] == [hash(i) for i in interventions]
    assert to_json(back) == text
    for a, b in zip(interventions, back, strict=True):
        for name in type(a)._arrays:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True)


def test_json_keeps_every_bit_of_a_vector():
    v = np.nextafter(np.full(D_MODEL, 0.1), 1)
    (back,) = from_json(to_json([DirectionalAblation(v)]))
    assert back.direction.tobytes() == v.tobytes()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[1]",
        '[{"kind": "magic"}]',
        '[{"site": "z"}]',
        '[{"kind": "zero_ablation", "x": 1}]',
        "3",
    ],
)
def test_other_json_is_refused(text):
    with pytest.raises(InterventionError, match="not a list of interventions in JSON"):
        from_json(text)


def test_interventions_differ_by_any_field():
    base = DirectionalAblation(R)
    assert base == DirectionalAblation(R.copy())
    for other in (
        DirectionalAblation(V),
        DirectionalAblation(R, sites=["resid_pre"]),
        DirectionalAblation(R, layers=[0]),
        DirectionalAblation(R, when="prompt"),
        MeanAblation(R),
    ):
        assert base != other


def test_a_vector_is_copied_and_cannot_be_changed_afterwards():
    mine = R.copy()
    made = DirectionalAblation(mine)
    mine[:] = 0
    np.testing.assert_array_equal(made.direction, R)
    with pytest.raises(ValueError, match="read-only"):
        made.direction[0] = 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_torch_vector_is_taken_in_any_dtype(dtype):
    made = DirectionalAblation(torch.ones(4, dtype=dtype, requires_grad=True))
    np.testing.assert_array_equal(made.direction, np.ones(4))


def test_json_holds_nothing_but_plain_data():
    item = json.loads(to_json([ActivationAddition(V, 2.0, layers=[1])]))[0]
    assert item["kind"] == "activation_addition"
    assert item["coefficient"] == 2.0
    assert item["layers"] == [1]


def captured(interventions, site="resid_post", layer=1, model=None):
    captures = [Capture("x", site, layer, (-2, -1))]
    return capture_tokens(model or tiny_model("llama"), ROWS, captures, interventions)["x"]


def test_a_zero_direction_changes_nothing():
    clean = captured([])
    np.testing.assert_array_equal(captured([DirectionalAblation(np.zeros(D_MODEL))]), clean)
    rounding = 1e-14 * R
    assert np.abs(captured([DirectionalAblation(rounding)]) - clean).max() < 1e-9


def test_ablation_does_not_depend_on_the_length_of_the_direction():
    one = captured([DirectionalAblation(R)])
    np.testing.assert_allclose(captured([DirectionalAblation(1e-3 * R)]), one, rtol=0, atol=1e-6)
    np.testing.assert_allclose(captured([DirectionalAblation(1e4 * R)]), one, rtol=0, atol=1e-6)


def test_nothing_of_the_direction_is_left_after_ablation():
    model = tiny_model("llama", torch.float64)
    unit = R / np.linalg.norm(R)
    for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"):
        x = captured([DirectionalAblation(R)], site, model=model)
        assert np.abs(x @ unit).max() < 1e-14 * np.abs(x).max() * D_MODEL


def test_interventions_at_one_site_apply_in_the_order_given():
    where = {"layers": [1], "sites": ["resid_post"]}
    ablate, add = (
        DirectionalAblation(R, **where),
        ActivationAddition(V, site="resid_post", layers=[1]),
    )
    clean, unit = captured([]), R / np.linalg.norm(R)

    def without(x):
        return x - (x @ unit)[..., None] * unit

    close = {"rtol": 0, "atol": 1e-5}
    np.testing.assert_allclose(captured([ablate, add]), without(clean) + V, **close)
    np.testing.assert_allclose(captured([add, ablate]), without(clean + V), **close)
    np.testing.assert_allclose(captured([add, add]), clean + 2 * V, **close)


def test_a_mean_per_layer_goes_to_its_layer_in_any_order():
    means = np.stack([R, V, R + V])
    for order in ([0, 1, 2], [2, 0, 1]):
        found = [
            captured([MeanAblation(means[order], "mlp_out", layers=order)], "mlp_out", layer)
            for layer in range(N_LAYERS)
        ]
        for layer in range(N_LAYERS):
            np.testing.assert_allclose(
                found[layer], np.broadcast_to(means[layer], (3, 2, D_MODEL)), rtol=1e-6
            )


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "neox"])
@pytest.mark.parametrize("site", ["q", "k", "v", "z"])
def test_only_the_heads_named_change(family, site):
    model = tiny_model(family)
    clean = captured([], site, model=model)
    value = np.arange(1.0, D_HEAD + 1)
    found = captured([MeanAblation(value, site, layers=[1], heads=[1])], site, model=model)
    np.testing.assert_allclose(found[..., 1, :], np.broadcast_to(value, found[..., 1, :].shape))
    others = [h for h in range(clean.shape[-2]) if h != 1]
    np.testing.assert_array_equal(found[..., others, :], clean[..., others, :])


def test_a_head_direction_is_removed_from_the_heads_named():
    d = np.random.default_rng(2).normal(size=D_HEAD)
    found = captured([DirectionalAblation(d, sites=["z"], layers=[1], heads=[0, 3])], "z")
    clean = captured([], "z")
    assert np.abs(found[..., [0, 3], :] @ d).max() < 1e-6
    np.testing.assert_array_equal(found[..., [1, 2], :], clean[..., [1, 2], :])


def test_a_patch_by_position_and_head_lands_there():
    value = np.random.default_rng(3).normal(size=(3, 2, 2, D_HEAD))
    patch = Patch(value, "z", layers=[1], positions=[-1, -2], heads=[3, 0])
    found = captured([patch], "z")
    clean = captured([], "z")
    np.testing.assert_allclose(found[:, 1][:, [3, 0]], value[:, 0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 0][:, [3, 0]], value[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(found[..., [1, 2], :], clean[..., [1, 2], :])


def test_positions_count_from_the_end_of_each_prompt():
    edit = ActivationAddition(V, site="resid_post", layers=[1], positions=[-3])
    model = tiny_model("llama")
    for side in ("left", "right"):
        captures = [Capture("x", "resid_post", 1, (-3, -2, -1))]
        with_, without = (
            capture_tokens(model, ROWS, captures, e, padding_side=side)["x"] for e in ([edit], [])
        )
        np.testing.assert_allclose(with_[:, 0] - without[:, 0], np.tile(V, (3, 1)), atol=1e-5)
        np.testing.assert_array_equal(with_[:, 1:], without[:, 1:])


def test_one_prompt_may_not_be_passed_as_a_string():
    from refusal_nn.tracing import capture

    with pytest.raises(RequestError, match="give a list of prompts, not one string"):
        capture(tiny_model("llama"), "w10")


def test_a_batch_of_one_row_takes_a_vector_with_a_row_axis():
    model = tiny_model("llama")
    captures = [Capture("x", "resid_post", 2, (-1,))]
    (a,) = run(
        model, [forward_request(model, pad(ROWS[:1], 0), captures, [DirectionalAblation(R)])]
    )
    (b,) = run(
        model, [forward_request(model, pad(ROWS[:1], 0), captures, [DirectionalAblation(R[None])])]
    )
    torch.testing.assert_close(a["x"], b["x"], rtol=0, atol=1e-6)
