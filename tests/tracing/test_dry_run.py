"""A job gives the same numbers as bytes in a process without this package, or is refused there."""

from __future__ import annotations

import sys
import threading
from types import ModuleType

import nnsight
import numpy as np
import pytest
import torch

from refusal_nn.backends import DryRun, Preflight
from refusal_nn.errors import BackendError, PreflightError
from refusal_nn.interventions import (
    ActivationAddition,
    DirectionalAblation,
    MeanAblation,
    Patch,
    ZeroAblation,
)
from refusal_nn.testing import D_MODEL, FAMILIES, tiny_model
from refusal_nn.tracing import (
    Capture,
    Ref,
    build_plan,
    capture_tokens,
    completions,
    forward_request,
    generate_request,
    pad,
    run,
    walk,
)

ROWS = [[7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23]]
R = np.random.default_rng(0).normal(size=D_MODEL)
QUICK = ("llama", "gemma2", "neox")  # one process each, seconds to start
SHOWN = [f if f in QUICK else pytest.param(f, marks=pytest.mark.long) for f in FAMILIES]
EDITS = {
    "none": [],
    "ablation": [DirectionalAblation(R)],
    "addition": [ActivationAddition(R, layers=[1], positions=[-1])],
    "means": [MeanAblation(R, "mlp_out", layers=[1]), ZeroAblation("z", layers=[0], heads=[2])],
    "patch": [Patch(np.ones((3, 2, D_MODEL)), layers=[2], positions=[-2, -1])],
}


@pytest.mark.parametrize("family", SHOWN)
def test_a_dry_run_gives_the_same_numbers(family):
    local, dry = tiny_model(family), tiny_model(family, backend="dry-run")
    captures = [
        Capture("resid", "resid_post", positions=(-2, -1)),
        Capture("q", "q", 1, positions=(-1,)),
        Capture("score", "logits", positions=(-1,), reduce="refusal_score", args={"tokens": [3]}),
    ]
    for name, edits in EDITS.items():
        a, b = (capture_tokens(m, ROWS, captures, edits) for m in (local, dry))
        for key in a:
            np.testing.assert_allclose(
                b[key], a[key], rtol=0, atol=1e-5 * np.abs(a[key]).max(), err_msg=f"{name} {key}"
            )

    def tokens(model, edits):
        batch = pad(ROWS, model.pad_token)
        (out,) = run(model, [generate_request(model, batch, edits, max_new_tokens=8)])
        return completions(model, out["ids"])

    for edits in EDITS.values():
        assert tokens(dry, edits) == tokens(local, edits)


def test_a_later_request_of_a_dry_run_may_use_what_an_earlier_one_held():
    local, dry = tiny_model("llama"), tiny_model("llama", backend="dry-run")
    keep = Capture("p", "logits", positions=(-1,), reduce="log_probs", keep=True)
    kl = Capture(
        "kl", "logits", positions=(-1,), reduce="smoothed_kl", args={"baseline": Ref(0, "p")}
    )

    def job(model):
        batch = pad(ROWS, 0)
        edits = EDITS["ablation"]
        return run(
            model,
            [forward_request(model, batch, [keep]), forward_request(model, batch, [kl], edits)],
        )[1]["kl"]

    torch.testing.assert_close(job(dry), job(local), rtol=0, atol=1e-6)


def test_a_job_that_fails_there_says_what_failed():
    dry = tiny_model("llama", backend="dry-run")
    too_large = [[500, 501]]
    with pytest.raises((BackendError, PreflightError), match="IndexError"):
        run(dry, [forward_request(dry, pad(too_large, 0), [Capture("x", "resid_post", 0)])])
    assert capture_tokens(dry, ROWS, [Capture("x", "resid_post", 0)])["x"].shape[0] == 3


# a script's own functions are shipped by value; those of a package only where it says so
nnsight.register("tests")
INPUTS = pad(ROWS, 0).inputs()
LOCK = threading.Lock()


def last_token(x):
    return x[:, -1].clone()


def locked(x):
    with LOCK:
        return x


def test_a_trace_of_ones_own_passes_preflight_and_runs_dry():
    model = tiny_model("llama")
    with model.nnsight.trace(INPUTS, backend=Preflight(model)):
        found = nnsight.save(last_token(model.nnsight.model.layers[1].output))
    with model.nnsight.trace(INPUTS, backend=DryRun(model)):
        found = nnsight.save(last_token(model.nnsight.model.layers[1].output))
    expected = capture_tokens(model, ROWS, [Capture("x", "resid_post", 1, (-1,))])["x"][:, 0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-6)


def test_a_trace_that_refers_to_a_lock_is_refused():
    model = tiny_model("llama")
    with (
        pytest.raises(
            PreflightError, match=r"cannot be serialised .*lock.*; keep locks, open files"
        ),
        model.nnsight.trace(INPUTS, backend=Preflight(model)),
    ):
        nnsight.save(locked(model.nnsight.model.layers[1].output))


def test_a_trace_that_needs_a_module_a_server_lacks_is_refused():
    model = tiny_model("llama")
    with (
        pytest.raises(PreflightError, match=r"does not run where .*No module named"),
        model.nnsight.trace(INPUTS, backend=Preflight(model)),
    ):
        nnsight.save(only_here(model.nnsight.model.layers[1].output))


only_here_module = ModuleType("only_on_this_machine")
exec("def only_here(x):\n    return x\n", only_here_module.__dict__)
sys.modules["only_on_this_machine"] = only_here_module
only_here = only_here_module.only_here


@pytest.mark.parametrize("where", ["local", "dry-run"])
def test_a_trace_of_ones_own_can_use_interventions_and_site_names(where):
    model = tiny_model("llama")
    row = ROWS[0]
    plan = build_plan(
        model.arch,
        [DirectionalAblation(R)],
        [Capture("z", "z", 1, (-1,))],
        batch=pad([row], 0),
    )
    options = {"backend": DryRun(model)} if where == "dry-run" else {}
    inner = model.nnsight
    with inner.trace(pad([row], 0).inputs(), **options):
        taken = nnsight.save(walk(inner, plan))
        logits = nnsight.save(inner.output.logits[:, -1])
    expected = capture_tokens(
        model,
        [row],
        [Capture("z", "z", 1, (-1,)), Capture("l", "logits", positions=(-1,))],
        [DirectionalAblation(R)],
    )
    np.testing.assert_allclose(taken["z"].numpy(), expected["z"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(logits.detach().numpy(), expected["l"][:, 0], rtol=0, atol=1e-5)


def test_the_map_names_the_module_of_a_site_in_a_trace_of_ones_own():
    model = tiny_model("gemma2")
    place = model.arch.place("attn_out")
    assert (model.arch.block(1), place.path, place.io) == (
        "model.layers.1",
        "post_attention_layernorm",
        "output",
    )
    with model.nnsight.trace(pad(ROWS[:1], 0).inputs()):
        found = nnsight.save(model.nnsight.get(f"{model.arch.block(1)}.{place.path}").output)
    expected = capture_tokens(model, ROWS[:1], [Capture("x", "attn_out", 1)])["x"]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=1e-6)
