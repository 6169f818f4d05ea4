"""The numbers do not depend on how the work is batched, padded, ordered or cut short."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_nn.errors import RequestError
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, ZeroAblation
from refusal_nn.testing import D_MODEL, FAMILIES, N_LAYERS, tiny_model
from refusal_nn.tracing import (
    Capture,
    Ref,
    Start,
    capture,
    capture_tokens,
    completions,
    forward_request,
    generate,
    generate_request,
    pad,
    run,
)

ROWS = [[7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23], [30, 31, 32, 33, 34, 35, 36, 37]]
RNG = np.random.default_rng(0)
R = RNG.normal(size=D_MODEL)
CAPTURES = [
    Capture("resid", "resid_post", positions=(-3, -2, -1)),
    Capture("z", "z", 1, positions=(-3, -1)),
    Capture("logits", "logits", positions=(-2, -1)),
    Capture("score", "logits", positions=(-1,), reduce="refusal_score", args={"tokens": [3, 40]}),
]
LIMIT = {torch.float32: 1e-5, torch.float64: 1e-10}


def by_rows(model, rows=ROWS, *, batch_size=4, side="left", interventions=()):
    found = capture_tokens(
        model, rows, CAPTURES, interventions, batch_size=batch_size, padding_side=side
    )
    return {k: np.moveaxis(v, 1, 0) if k == "resid" else v for k, v in found.items()}


def assert_same(a, b, limit):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(
            a[name], b[name], rtol=0, atol=limit * np.abs(b[name]).max(), err_msg=name
        )


@pytest.mark.parametrize("dtype", LIMIT, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_size_and_padding_side_and_order_do_not_matter(family, dtype):
    model = tiny_model(family, dtype)
    edits = [DirectionalAblation(R)]
    alone = by_rows(model, batch_size=1, interventions=edits)
    assert all(np.isfinite(v).all() for v in alone.values())
    sides = ["right"] if (family, dtype) == ("gemma2", torch.float64) else ["left", "right"]
    for side in sides:
        for size in (3, 4):
            found = by_rows(model, batch_size=size, side=side, interventions=edits)
            assert_same(found, alone, LIMIT[dtype])
    order = [2, 0, 3, 1]
    shuffled = by_rows(model, [ROWS[i] for i in order], side=sides[0], interventions=edits)
    back = {k: v[np.argsort(order)] for k, v in shuffled.items()}
    assert_same(back, alone, LIMIT[dtype])


@pytest.mark.parametrize("family", FAMILIES)
def test_generation_does_not_depend_on_batch_size_or_order(family):
    model = tiny_model(family)
    edits = [DirectionalAblation(R)]

    def tokens(rows):
        batch = pad(rows, model.pad_token)
        (out,) = run(model, [generate_request(model, batch, edits, max_new_tokens=8)])
        return completions(model, out["ids"])

    together = tokens(ROWS)
    assert [tokens([row])[0] for row in ROWS] == together
    assert tokens(ROWS[::-1]) == together[::-1]


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_moe", "gpt2", "neox"])
def test_rows_of_variants_equal_the_serial_loop(family):
    model = tiny_model(family)
    directions = RNG.normal(size=(3, D_MODEL))
    batch = pad(ROWS, model.pad_token)
    n = len(ROWS)
    many = batch.repeat(3)
    for make in (
        lambda d: DirectionalAblation(d),
        lambda d: ActivationAddition(d, layers=[1]),
        lambda d: ActivationAddition(d, layers=[1], positions=[-2, -1]),
    ):
        (rows,) = run(
            model,
            [forward_request(model, many, CAPTURES, [make(np.repeat(directions, n, axis=0))])],
        )
        for i, d in enumerate(directions):
            (one,) = run(model, [forward_request(model, batch, CAPTURES, [make(d)])])
            part = slice(i * n, i * n + n)
            found = {k: v[:, part] if k == "resid" else v[part] for k, v in rows.items()}
            assert_same(
                {k: v.numpy() for k, v in found.items()},
                {k: v.numpy() for k, v in one.items()},
                1e-5,
            )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_starting_at_a_layer_equals_the_full_run(family, side):
    model = tiny_model(family)
    batch = pad(ROWS, model.pad_token, padding_side=side)
    captures = [
        Capture("post", "resid_post", [1, 2], (-2, -1)),
        Capture("z", "z", [1, 2], (-1,)),
        Capture("logits", "logits", positions=(-1,)),
    ]
    edits = [ActivationAddition(R, layers=[1]), DirectionalAblation(R, layers=[2])]
    (held,) = run(model, [forward_request(model, batch, [Capture("pre", "resid_pre", 1)])])
    (full,) = run(model, [forward_request(model, batch, captures, edits)])
    (short,) = run(
        model, [forward_request(model, batch, captures, edits, start=Start(1, held["pre"]))]
    )
    for name in full:
        torch.testing.assert_close(
            short[name], full[name], rtol=0, atol=1e-5 * float(full[name].abs().max())
        )


def test_starting_at_a_layer_leaves_out_the_earlier_blocks():
    model = tiny_model("llama")
    batch = pad(ROWS, model.pad_token)
    (held,) = run(model, [forward_request(model, batch, [Capture("pre", "resid_pre", 2)])])
    captures = [Capture("post", "resid_post", 2, (-1,))]
    wrong = pad([[40 + i for i in row] for row in ROWS], model.pad_token)
    starts = [
        forward_request(model, b, captures, start=Start(2, held["pre"])) for b in (batch, wrong)
    ]
    a, b = run(model, starts)
    torch.testing.assert_close(a["post"], b["post"], rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_early_does_not_change_captures(family):
    model = tiny_model(family)
    batch = pad(ROWS, model.pad_token)
    early = [Capture("x", "resid_post", [0, 1], (-2, -1))]
    late = [*early, Capture("l", "logits", positions=(-1,))]
    (a,), (b,) = (run(model, [forward_request(model, batch, c)]) for c in (early, late))
    torch.testing.assert_close(a["x"], b["x"], rtol=0, atol=0)


def test_stopping_early_leaves_out_the_later_blocks():
    model = tiny_model("llama")
    calls = []
    handle = model.module.model.layers[2].register_forward_hook(lambda *_: calls.append(1))
    try:
        early = forward_request(model, pad(ROWS, 0), [Capture("x", "resid_post", 0)])
        run(model, [early])
        assert calls == []
        run(model, [forward_request(model, pad(ROWS, 0), [Capture("x", "logits")])])
        assert calls == [1]
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_the_last_token_alone_equal_those_of_a_full_pass(family):
    model = tiny_model(family)
    batch = pad(ROWS, model.pad_token)
    last = forward_request(model, batch, [Capture("l", "logits", positions=(-1,))])
    full = forward_request(model, batch, [Capture("l", "logits")])
    assert last.options["logits_to_keep"] == 1
    assert "logits_to_keep" not in full.options
    (a,), (b,) = run(model, [last]), run(model, [full])
    torch.testing.assert_close(a["l"][:, 0], b["l"][:, -1], rtol=0, atol=1e-5)


def test_layers_come_back_in_the_order_asked_for():
    model = tiny_model("llama")
    captures = [
        Capture("all", "resid_post", None, (-1,)),
        Capture("some", "resid_post", [2, 0], (-1,)),
        Capture("twice", "resid_post", [1, 2, 1], (-1,)),
    ]
    found = capture_tokens(model, ROWS, captures)
    np.testing.assert_array_equal(found["some"], found["all"][[2, 0]])
    np.testing.assert_array_equal(found["twice"], found["all"][[1, 2, 1]])


def test_a_capture_sees_the_edited_value():
    model = tiny_model("llama")
    found = capture_tokens(model, ROWS, [Capture("x", "attn_out", 1)], [ZeroAblation(layers=[1])])
    assert not found["x"].any()


def test_what_a_request_holds_serves_the_next_one_and_is_not_returned():
    model = tiny_model("llama")
    batch = pad(ROWS, model.pad_token)
    keep = Capture("p", "logits", positions=(-1,), reduce="log_probs", keep=True)
    ref = {"baseline": Ref(0, "p")}
    kl = Capture("kl", "logits", positions=(-1,), reduce="smoothed_kl", args=ref)
    first, same, edited = run(
        model,
        [
            forward_request(model, batch, [keep]),
            forward_request(model, batch, [kl]),
            forward_request(model, batch, [kl], [DirectionalAblation(R)]),
        ],
    )
    assert first == {}
    assert same["kl"].abs().max() < 1e-9

    logits = [
        capture_tokens(model, ROWS, [Capture("l", "logits", positions=(-1,))], e)["l"][:, 0]
        for e in ([], [DirectionalAblation(R)])
    ]
    base, other = (
        np.exp(x - np.log(np.exp(x).sum(-1, keepdims=True))) for x in map(np.float64, logits)
    )
    expected = (base * (np.log(base + 1e-6) - np.log(other + 1e-6))).sum(-1)
    assert expected.min() > 1e-3
    np.testing.assert_allclose(edited["kl"].numpy(), expected, rtol=0, atol=1e-6)


def test_reductions_equal_the_same_sums_of_the_whole_activation():
    model = tiny_model("llama")
    batch = pad(ROWS, model.pad_token)
    weights = torch.tensor([[1.0, 0, 1, 0], [0, 1, 0, 1]])
    directions = torch.tensor(RNG.normal(size=(2, D_MODEL)), dtype=torch.float32)
    tokens = batch.ids
    whole, reduced = run(
        model,
        [
            forward_request(
                model,
                batch,
                [Capture("x", "resid_post", positions=(-2, -1)), Capture("l", "logits")],
            ),
            forward_request(
                model,
                batch,
                [
                    Capture("s", "resid_post", None, (-2, -1), "sum", {"weights": weights}),
                    Capture(
                        "p", "resid_post", None, (-2, -1), "project", {"directions": directions}
                    ),
                    Capture("r", "logits", None, (-1,), "refusal_score", {"tokens": [3, 40]}),
                    Capture("n", "logits", None, None, "token_log_probs", {"tokens": tokens}),
                ],
            ),
        ],
    )
    x = whole["x"].double()
    torch.testing.assert_close(reduced["s"], torch.einsum("gr,lrpd->lgpd", weights.double(), x))
    assert reduced["s"].dtype == torch.float64
    torch.testing.assert_close(reduced["p"], torch.einsum("lrpd,kd->lrpk", whole["x"], directions))

    p = whole["l"][:, -1].double().softmax(-1)[:, [3, 40]].sum(-1)
    torch.testing.assert_close(reduced["r"], torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))
    logp = whole["l"].log_softmax(-1)
    for row in range(len(ROWS)):
        for t in range(1, batch.width):
            assert abs(reduced["n"][row, t] - logp[row, t - 1, tokens[row, t]]) < 1e-5
    assert not reduced["n"][:, 0].any()


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_bfloat16_projects_in_float32(family):
    """The edit adds no more error than writing its result in bfloat16 does."""
    model = tiny_model(family, torch.bfloat16)
    unit = R / np.linalg.norm(R)
    captures = [Capture("x", "resid_pre", 1, (-2, -1))]
    edit = DirectionalAblation(R, sites=["resid_pre"], layers=[1])
    clean = capture_tokens(model, ROWS, captures)["x"].astype(np.float64)
    found = capture_tokens(model, ROWS, captures, [edit])["x"].astype(np.float64)
    exact = clean - (clean @ unit)[..., None] * unit
    # one rounding to 8 bits of mantissa, half a unit in the last place
    assert np.abs(found - exact).max() <= 2.0**-8 * np.abs(exact).max()
    assert (np.abs(found - exact) <= 2.0**-8 * np.abs(exact) + 1e-6).all()


def test_bfloat16_activations_come_back_exactly_as_float32():
    model = tiny_model("llama", torch.bfloat16)
    x = capture_tokens(model, ROWS, [Capture("x", "resid_post", 2)])["x"]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(torch.from_numpy(x).bfloat16().float().numpy(), x)
    assert np.isfinite(x).all()


PROMPTS = ["w10 w11", "w12", "w13 w14 w15"]


def test_capture_labels_what_it_returns():
    model = tiny_model("llama")
    found = capture(model, PROMPTS, ["resid_pre", "q", "k"], layers=[2, 0], batch_size=2)
    assert found["resid_pre"].dims == ("prompt", "layer", "position", "d_model")
    assert found["q"].dims == ("prompt", "layer", "position", "head", "d_head")
    assert found["k"].dims == ("prompt", "layer", "position", "kv_head", "d_head")
    assert (found.sizes["head"], found.sizes["kv_head"]) == (4, 2)
    assert found.layer.values.tolist() == [2, 0]
    assert found.position.values.tolist() == [-2, -1]
    rows = model.chat.tokens(PROMPTS)
    plain = capture_tokens(model, rows, [Capture("x", "resid_pre", 2, (-1,))])["x"]
    np.testing.assert_allclose(
        found["resid_pre"].sel(layer=2, position=-1).values, plain[:, 0], rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("site", ["logits", "embed", "resid"])
def test_capture_refuses_a_site_that_no_block_has(site):
    with pytest.raises(RequestError, match=rf"no block site '{site}'; sites are resid_pre"):
        capture(tiny_model("llama"), PROMPTS, site)


def test_generate_returns_completions_without_prompt_and_end():
    model = tiny_model("llama")
    found = generate(model, PROMPTS, max_new_tokens=6, batch_size=2)
    assert [len(row) <= 6 for row in found] == [True] * 3
    assert generate(model, PROMPTS, max_new_tokens=6, batch_size=1) == found
    assert all(2 not in row for row in found)


def test_completions_end_at_the_end_token_and_keep_a_padding_token_the_model_chose():
    model = tiny_model("llama")
    ids = torch.tensor([[7, 0, 8, 2, 0], [2, 0, 0, 0, 0], [5, 6, 7, 8, 9]])
    assert completions(model, ids) == [[7, 0, 8], [], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda m: capture(m, []), r"no prompts to run; the set is empty"),
        (lambda m: generate(m, []), r"no prompts to run; the set is empty"),
        (lambda m: capture(m, PROMPTS, batch_size=0), r"batch size must be at least 1, got 0"),
        (lambda m: capture(m, PROMPTS, padding_side="top"), r"'top' is neither 'left' nor 'right'"),
        (
            lambda m: generate_request(m, pad(ROWS, 0, padding_side="right"), max_new_tokens=1),
            r"generation needs left padding",
        ),
    ],
)
def test_a_wrong_request_is_refused(call, reason):
    with pytest.raises(RequestError, match=reason):
        call(tiny_model("llama"))


def test_two_threads_may_share_a_model():
    from concurrent.futures import ThreadPoolExecutor

    model = tiny_model("llama")
    expected = by_rows(model)
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: by_rows(model), range(6)):
            assert_same(found, expected, 1e-6)


def test_the_stack_has_every_layer():
    assert by_rows(tiny_model("llama"))["resid"].shape[:2] == (len(ROWS), N_LAYERS)
