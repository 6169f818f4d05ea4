"""Steps on a model: several a job, the same numbers as one a job, here and elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import refusal_nn as rn
from refusal_nn.backends import Limits, Ndif
from refusal_nn.backends.ndif._service import Answer, TooLargeError
from refusal_nn.errors import BackendError, RequestError, StoreError
from refusal_nn.shipped.steps import stepped
from refusal_nn.store import JobLedger, MemoryRecorder
from refusal_nn.tracing import Capture, Optimizer, Start, Steps, capture_tokens, pad
from tests.store.looping import recorder
from tests.tracing.ascent import LAYER, PROMPTS, ROWS, STEPS, Ascent, records
from tests.tracing.test_jobs_too_large import TOO_LONG
from tests.tracing.test_session import answer_of

QUICK = Limits(in_flight=2, deadline=600, retries=2, backoff=0.001, poll=0.001)


@pytest.fixture(scope="module")
def model():
    return rn.load_model("tiny-refuser")


@pytest.fixture(scope="module")
def here(model):
    return Ascent(model).run(MemoryRecorder())


def same(one: Any, other: Any) -> None:
    xr.testing.assert_identical(one.state, other.state)
    xr.testing.assert_identical(one.records, other.records)


def test_forty_steps_up_the_gradient_raise_the_refusal_of_harmless_prompts(here) -> None:
    scores = here.records["ascent_score"].values
    assert here.steps == STEPS
    assert scores[0] < -3
    assert scores[-1] > scores[0] + 10
    assert np.linalg.norm(here.state["vector"].values) > 0


@pytest.mark.parametrize("steps_per_job", [1, 7])
def test_how_many_steps_make_a_job_changes_no_bit(model, here, steps_per_job, tmp_path) -> None:
    same(Ascent(model).run(MemoryRecorder(), steps_per_job), here)
    with recorder(tmp_path) as run:
        same(Ascent(model).run(run, steps_per_job), here)


def by_autograd(model, steps: int, optimizer: Optimizer) -> tuple[np.ndarray, list[float]]:
    """The same ascent with plain hooks and ``torch.optim``."""
    ascent = Ascent(model, optimizer=optimizer)
    vector = torch.zeros(model.d_model, requires_grad=True)
    if optimizer.kind == "sgd":
        optim: Any = torch.optim.SGD(
            [vector],
            optimizer.lr,
            momentum=optimizer.momentum,
            weight_decay=optimizer.weight_decay,
            maximize=True,
        )
    else:
        optim = torch.optim.AdamW(
            [vector], optimizer.lr, weight_decay=optimizer.weight_decay, maximize=True
        )
    block = model.module.get_submodule(model.arch.block(LAYER))
    scores = []
    for step in range(steps):
        optim.zero_grad()
        values = []
        hook = block.register_forward_pre_hook(lambda _, args: (args[0] + vector, *args[1:]))
        for batch in ascent.batches(step):
            logits = model.module(**batch.inputs(), use_cache=False).logits[:, -1]
            p = torch.softmax(logits.double(), -1)[:, list(ascent.metric.tokens)].sum(-1)
            values.append(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))
        hook.remove()
        mean = torch.cat(values).mean()
        mean.backward()
        optim.step()
        if optimizer.norm is not None:
            with torch.no_grad():
                vector.mul_(optimizer.norm / vector.norm())
        scores.append(float(mean.detach()))
    return vector.detach().numpy(), scores


@pytest.mark.parametrize(
    "optimizer",
    [
        Optimizer(lr=0.05, maximize=True, weight_decay=0.01),
        Optimizer(
            lr=0.02, kind="sgd", momentum=0.9, weight_decay=0.1, decoupled=False, maximize=True
        ),
        Optimizer(lr=0.05, maximize=True, norm=2.0),
    ],
)
def test_the_steps_are_those_of_torch_with_plain_hooks(model, optimizer) -> None:
    found = Ascent(model, optimizer=optimizer).run(MemoryRecorder(), steps=6)
    vector, scores = by_autograd(model, 6, optimizer)
    np.testing.assert_allclose(found.records["ascent_score"].values, scores, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.state["vector"].values, vector, rtol=0, atol=1e-4)


def test_a_dry_run_gives_the_same_numbers(here) -> None:
    dry = Ascent(rn.load_model("tiny-refuser", backend="dry-run")).run(MemoryRecorder())
    for name in records().data_vars:
        np.testing.assert_allclose(
            dry.records[name].values, here.records[name].values, rtol=0, atol=1e-5
        )
    for name in here.state.data_vars:
        np.testing.assert_allclose(
            dry.state[name].values, here.state[name].values, rtol=0, atol=1e-5
        )


class Server:
    """Runs the jobs it is sent in a process without this package, and counts them."""

    host = "http://server"
    received = 0

    def __init__(self, model: Any) -> None:
        self.model = model
        self.results: dict[str, bytes] = {}
        self.dies_after = -1

    def submit(self, blob: bytes, key: str, env: Any, compress: bool) -> str:
        name = f"job{len(self.results)}"
        self.results[name] = answer_of(self.model, blob)
        return name

    def ask(self, job: str) -> Answer:
        if len(self.results) - 1 == self.dies_after:
            self.dies_after = -1
            raise KeyboardInterrupt
        return Answer("done", "COMPLETED", url=job)

    def download(self, url: str) -> bytes:
        return self.results[url]

    def scrub(self, text: str) -> str:
        return text


def at(server: Server, limits: Limits = QUICK) -> Ascent:
    """The ascent at a server, for which no preflight is made."""
    there: Any = Ndif(server, "key", "org/model", limits)  # type: ignore[arg-type]
    there.preflight = lambda model, block: None
    return Ascent(replace(server.model, backend=there))


def test_several_steps_a_job_take_a_quarter_of_the_jobs_or_fewer(model, here) -> None:
    server = Server(model)
    found = at(server).run(MemoryRecorder())
    jobs, one_a_step = len(server.results), STEPS
    assert jobs == -(-STEPS // 16)
    assert jobs <= one_a_step / 4
    single = Server(model)
    first = at(single).run(MemoryRecorder(), 1, steps=3)
    assert len(single.results) == 3
    scores = here.records["ascent_score"].values
    np.testing.assert_allclose(found.records["ascent_score"].values, scores, rtol=0, atol=1e-5)
    np.testing.assert_allclose(first.records["ascent_score"].values, scores[:3], rtol=0, atol=1e-5)
    for name in here.state.data_vars:
        np.testing.assert_allclose(
            found.state[name].values, here.state[name].values, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("then", [16, 5])
def test_a_job_left_at_a_server_is_collected_whatever_makes_a_job_now(
    model, here, tmp_path: Path, then
) -> None:
    server = Server(model)
    server.dies_after = 1
    with pytest.raises(KeyboardInterrupt), recorder(tmp_path) as run:
        at(server).run(run)
    ledger = JobLedger(tmp_path / "run.zarr.partial" / "ascend.jobs.json")
    assert [e["state"] for e in ledger.jobs] == ["done", "submitted"]
    with recorder(tmp_path) as run:
        found = at(server).run(run, then)
    assert len(server.results) == 2 + -(-(STEPS - 32) // then)
    scores = here.records["ascent_score"].values
    np.testing.assert_allclose(found.records["ascent_score"].values, scores, rtol=0, atol=1e-5)


def test_a_job_has_no_more_steps_than_fit_into_it(model) -> None:
    ascent = Ascent(model)
    tokens = 3 * sum(batch.ids.numel() for batch in ascent.batches(0))  # gradients count thrice
    server = Server(model)
    at(server, replace(QUICK, tokens=2 * tokens + tokens // 2)).run(MemoryRecorder(), steps=4)
    assert len(server.results) == 2
    server = Server(model)
    at(server, replace(QUICK, tokens=1)).run(MemoryRecorder(), steps=2)
    assert len(server.results) == 2  # one step at least


@pytest.mark.parametrize("failure", [TooLargeError("too many bytes."), TOO_LONG])
def test_a_job_that_was_too_large_is_sent_in_halves_from_then_on(model, here, failure) -> None:
    class Small(Server):
        """The third job it takes, of a quarter of the steps, is the first that passes."""

        refused = 0

        def submit(self, blob: bytes, *rest: Any) -> str:
            if self.refused < 2:
                self.refused += 1
                if isinstance(failure, Exception):
                    raise failure
                return "large"
            return super().submit(blob, *rest)

        def ask(self, job: str) -> Answer:
            return failure if job == "large" else super().ask(job)

    server = Small(model)
    found = at(server).run(MemoryRecorder(), 8, steps=6)
    assert len(server.results) == 6  # of one step each: 6, 3, 1
    scores = here.records["ascent_score"].values[:6]
    np.testing.assert_allclose(found.records["ascent_score"].values, scores, rtol=0, atol=1e-5)


def test_a_step_that_is_too_large_alone_is_an_error(model) -> None:
    server = Server(model)
    server.submit = lambda *_: "large"  # type: ignore[method-assign]
    server.ask = lambda job: TOO_LONG  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="smaller"):
        at(server).run(MemoryRecorder(), 4, steps=4)


def one_pass(model, state: Any, work: Any, *, keep: bool = True) -> Any:
    batch = pad([[7, 8, 9]], model.pad_token)
    return work.forward(batch, [Capture("x", "resid_pre", 2, (-1,), keep=keep)])


@pytest.mark.parametrize(
    "leave",
    [
        lambda p, state: {"x": p.held("x", rows=[0])},
        lambda p, state: {"x": replace(p.held("x"), name="nothing")},
        lambda p, state: {"x": p.held("x"), "y": p.held("x")},
        lambda p, state: {},
    ],
)
def test_a_state_must_be_what_its_step_holds(model, leave) -> None:
    def ask(work, step, state):
        return leave(one_pass(model, state, work), state), None

    with pytest.raises(RequestError, match=r"leaves (the state|as 'x')"):
        MemoryRecorder().loop("s", {"x": np.zeros((1, 1, model.d_model))}, 2, Steps(model, ask))


def test_a_step_that_asks_nothing_is_refused(model) -> None:
    body = Steps(model, lambda work, step, state: (state, None))
    with pytest.raises(RequestError, match="step 0 asks nothing"):
        MemoryRecorder().loop("s", {"x": np.zeros(3)}, 2, body)


def test_a_state_that_a_later_request_uses_is_refused(model) -> None:
    def ask(work, step, state):
        batch = pad([[7, 8, 9]], model.pad_token)
        p = work.forward(batch, [Capture("x", "resid_pre", 2, keep=True)])
        work.forward(batch, [Capture("y", "resid_post", 2)], start=Start(2, p.held("x")))
        return {"x": p.held("x")}, None

    with pytest.raises(RequestError, match="let the update be the last request"):
        MemoryRecorder().loop("s", {"x": np.zeros((1, 3, model.d_model))}, 2, Steps(model, ask))


def test_a_captured_state_and_one_that_stays_come_back_and_their_form_is_checked(model) -> None:
    def ask(work, step, state):
        return {"x": one_pass(model, state, work).held("x"), "same": state["same"]}, None

    first = {"x": np.zeros((1, 1, model.d_model), np.float32), "same": np.arange(3)}
    found = MemoryRecorder().loop("s", first, 3, Steps(model, ask))
    np.testing.assert_array_equal(found.state["same"].values, np.arange(3))
    assert np.abs(found.state["x"].values).max() > 0
    with pytest.raises(StoreError, match="the first state is"):
        MemoryRecorder().loop("s", {**first, "x": np.zeros(4)}, 3, Steps(model, ask))


def test_a_state_held_in_bfloat16_comes_back_widened() -> None:
    half = rn.load_model("tiny-refuser", dtype=torch.bfloat16)

    def ask(work, step, state):
        return {"x": one_pass(half, state, work).held("x")}, None

    first = {"x": np.zeros((1, 1, half.d_model), np.float32)}
    found = MemoryRecorder().loop("s", first, 1, Steps(half, ask)).state["x"].values
    expected = capture_tokens(half, [[7, 8, 9]], [Capture("x", "resid_pre", 2, (-1,))])["x"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        (Optimizer(lr=0.1), lambda p: torch.optim.Adam(p, 0.1)),
        (
            Optimizer(lr=0.1, weight_decay=0.2, decoupled=False, maximize=True),
            lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.2, maximize=True),
        ),
        (
            Optimizer(lr=0.1, weight_decay=0.2, betas=(0.5, 0.9), eps=1e-3),
            lambda p: torch.optim.AdamW(p, 0.1, betas=(0.5, 0.9), eps=1e-3, weight_decay=0.2),
        ),
        (Optimizer(lr=0.1, kind="sgd", decoupled=False), lambda p: torch.optim.SGD(p, 0.1)),
        (
            Optimizer(lr=0.1, kind="sgd", momentum=0.9, weight_decay=0.3, decoupled=False),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.3),
        ),
    ],
)
def test_a_step_is_that_of_torch_optim(optimizer, reference, dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, generator=generator, dtype=dtype)
    state = {"vector": x, "first": torch.zeros_like(x), "second": torch.zeros_like(x)}
    parameter = torch.nn.Parameter(x.clone())
    optim = reference([parameter])
    for step in range(30):
        gradient = torch.randn(12, generator=generator, dtype=dtype)
        kept = {name: value.clone() for name, value in state.items()}
        after = stepped(state, gradient, step, optimizer.plain())
        for name, value in kept.items():
            assert torch.equal(state[name], value)  # nothing is changed in place
        state = after
        parameter.grad = gradient.clone()
        optim.step()
        tolerance = 1e-5 if dtype == torch.float32 else 1e-12
        torch.testing.assert_close(state["vector"], parameter.data, rtol=0, atol=tolerance)


def test_a_vector_can_be_given_a_length() -> None:
    optimizer = Optimizer(lr=0.1, norm=3.0)
    state = {n: torch.from_numpy(v) for n, v in optimizer.start(np.ones(5)).items()}
    after = stepped(state, torch.ones(5, dtype=torch.float64), 0, optimizer.plain())
    assert float(after["vector"].norm()) == pytest.approx(3.0)


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(RequestError, match="neither 'adam' nor 'sgd'"):
        Optimizer(lr=1, kind="newton")
    with pytest.raises(RequestError, match="at least 1, got 0"):
        Steps(None, None, 0)  # type: ignore[arg-type]
    assert PROMPTS % ROWS == 0
