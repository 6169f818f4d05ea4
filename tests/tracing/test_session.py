"""A whole job as bytes gives, in a process without this package, what its batches give here."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from nnsight.modeling.transformers import TransformersModel

import refusal_nn as rn
from refusal_nn.backends import DryRunBackend, Limits, Ndif, Preflight, Service
from refusal_nn.backends._payload import Batches, Job, _compact, decompress
from refusal_nn.backends._process import Worker, worker_of
from refusal_nn.backends._size import size_of
from refusal_nn.backends.ndif._errors import TooMuchError, failure_of
from refusal_nn.errors import BackendError, ModelError, PreflightError, UnavailableError
from refusal_nn.interventions import DirectionalAblation
from refusal_nn.shipped.job import pack, run_request, unpack
from refusal_nn.store import JobLedger
from refusal_nn.tracing import Capture, Ref, Start, forward_request, generate_request, pad, run

ROWS = [[7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23]]
SERVICE = Service("http://server", "a-secret-key")
LINK = Ndif(SERVICE, "key", "org/model")


@pytest.fixture(scope="module")
def model():
    return rn.load_model("tiny-refuser")


def batch_requests(model):
    batch = pad(ROWS, model.pad_token)
    edits = [DirectionalAblation(np.random.default_rng(0).normal(size=model.d_model))]
    kl = {"baseline": Ref(0, "log_probs")}
    return [
        forward_request(
            model,
            batch,
            [
                Capture("log_probs", "logits", None, (-1,), "log_probs", keep=True),
                Capture("resid", "resid_pre", keep=True),
            ],
        ),
        forward_request(
            model, batch, [Capture("kl", "logits", None, (-1,), "smoothed_kl", kl)], edits
        ),
        forward_request(
            model,
            batch,
            [Capture("end", "resid_post", 7, (-1,))],
            start=Start(4, Ref(0, "resid", layer=4)),
        ),
        generate_request(model, batch, edits, max_new_tokens=6),
    ]


def remote_of(model) -> rn.models.Model:
    """The same model as backend ndif sees it."""
    return rn.models.Model(
        **{
            name: getattr(model, name)
            for name in ("name", "source", "nnsight", "tokenizer", "arch", "dtype", "device")
        },
        backend=LINK,
    )


def answer_of(model, blob: bytes) -> bytes:
    """What a server would send back: the block run elsewhere, compressed."""
    saved = worker_of(model, weights=True).ask(decompress(blob))
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


def test_a_job_gives_what_its_batches_give(model) -> None:
    twin = remote_of(model)
    expected = run(model, batch_requests(model))
    passes = Batches(twin, lambda i: batch_requests(model))
    job = passes.job([3, 5])
    found = passes.answers(job, answer_of(model, passes.blob(job)))
    assert len(found) == 2
    for results in found:
        for got, want in zip(results, expected, strict=True):
            assert got.keys() == want.keys()
            for name in want:
                torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-5)
    assert twin.verified  # the check came along, and the weights are those of the folder


def test_what_shared_requests_hold_is_there_for_every_batch(model) -> None:
    twin = remote_of(model)
    batch = pad(ROWS, model.pad_token)
    held = forward_request(model, batch, [Capture("resid", "resid_pre", keep=True)])

    def requests(layer: int):
        start = Start(layer, Ref(0, "resid", shared=True, layer=layer))
        return [forward_request(model, batch, [Capture("end", "resid_post", 7)], start=start)]

    passes = Batches(twin, requests, [held])
    job = passes.job([2, 6])
    first, last = passes.answers(job, answer_of(model, passes.blob(job)))
    (whole,) = run(model, [forward_request(model, batch, [Capture("end", "resid_post", 7)])])
    mask = batch.mask.bool()
    for results in (first, last):
        found, expected = results[0]["end"][mask], whole["end"][mask]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_dry_run_sends_its_process_the_bytes_that_a_server_would_get(model, monkeypatch) -> None:
    dry = replace(model, backend=DryRunBackend(), verified=False)
    sent: list[bytes] = []
    made: list[bytes] = []
    ask, block = Worker.ask, Batches.block

    def making(self: Batches, job: Job) -> bytes:
        made.append(block(self, job))
        return made[-1]

    def listening(self: Worker, blob: bytes, **options: float | None) -> dict[str, object]:
        sent.append(blob)
        return ask(self, blob, **options)

    monkeypatch.setattr(Worker, "ask", listening)
    monkeypatch.setattr(Batches, "block", making)
    stream = dry.backend.stream(dry, [3, 5], lambda i: batch_requests(model), [], JobLedger())
    found = dict(stream)
    assert len(sent) == 1  # both batches, and the check with them
    assert sent == made
    monkeypatch.setattr(Preflight, "check", lambda self, block: None)
    batches = Batches(remote_of(model), lambda i: batch_requests(model))
    blob = batches.blob(batches.job([3, 5]))
    assert decompress(blob) == made[1]
    assert abs(len(made[1]) - len(made[0])) < 100  # but for names of objects the same job
    assert dry.verified
    expected = run(model, batch_requests(model))
    for results in (found[3], found[5]):
        for got, want in zip(results, expected, strict=True):
            for name in want:
                torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-5)


def test_the_first_job_of_a_model_is_read_elsewhere_before_any_is_sent(model, monkeypatch) -> None:
    read: list[bytes] = []
    monkeypatch.setattr(Preflight, "check", lambda self, block: read.append(block))
    twin = remote_of(model)
    batches = Batches(twin, lambda i: batch_requests(model))
    first = decompress(batches.blob(batches.job([0])))
    assert read == [first]
    batches.blob(batches.job([1]))
    assert len(read) == 1  # what follows is made of the same parts
    other = remote_of(model)
    Batches(other, lambda i: []).blob(Job((0,), ((),)))
    assert len(read) == 2

    def refuses(self: Preflight, block: bytes) -> None:
        raise PreflightError("cannot be read.")

    monkeypatch.setattr(Preflight, "check", refuses)
    refused = remote_of(model)
    for _ in range(2):  # nor is it sent the second time
        with pytest.raises(PreflightError, match="cannot be read"):
            refused.backend.run(refused, batch_requests(model))


def test_the_check_travels_until_it_has_passed(model) -> None:
    twin = remote_of(model)
    passes = Batches(twin, lambda i: [])
    before = len(passes.blob(Job((0,), ((),))))
    twin.verified = True
    assert len(passes.blob(Job((0,), ((),)))) < before


def answered(model, **facts: str) -> bytes:
    none = {"layout": [], "flat": {}}
    known = {"dtype": "float32", "commit": "", "weights": "", **facts}
    buffer = io.BytesIO()
    torch.save({"answer": {"batches": none, "check": none, "facts": known}}, buffer)
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"dtype": "bfloat16"}, "runs 'org/model' in bfloat16, but float32 was expected"),
        ({"commit": "f" * 40}, "runs commit ffffffffffff"),
        ({"weights": "0" * 64}, "are not those of the embedded 'tiny-refuser'"),
    ],
)
def test_a_server_with_another_model_than_meant_is_refused(model, facts, said: str) -> None:
    twin = remote_of(model)
    twin.backend = Ndif(SERVICE, "key", "org/model", pinned="a" * 40)
    with pytest.raises(ModelError, match=said):
        Batches(twin, lambda i: []).answers(Job(()), answered(model, **facts))


def test_gradients_are_refused_where_the_weights_are_elsewhere(model) -> None:
    apart = TransformersModel(model.source, task="text-generation", tokenizer=model.tokenizer)
    batch = pad(ROWS, model.pad_token)
    request = forward_request(model, batch, [Capture("x", "logits", live=True)], gradient=True)
    job = {"inputs": request.inputs, "plan": request.plan, "options": {}, "generate": False}
    with pytest.raises(RuntimeError, match="trusted key"):
        run_request(apart, job, [], [])


def test_a_result_cannot_make_the_client_run_code(model) -> None:
    class Trap:
        def __reduce__(self):
            return print, ("run",)

    buffer = io.BytesIO()
    torch.save({"answer": Trap()}, buffer)
    content = zstandard.ZstdCompressor().compress(buffer.getvalue())
    with pytest.raises(pickle.UnpicklingError):
        Batches(remote_of(model), lambda i: []).answers(Job(()), content)


DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.bfloat16)
tensors = st.builds(
    lambda shape, dtype, seed: (
        torch.randint(-(2**40), 2**40, shape, generator=torch.Generator().manual_seed(seed))
    ).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(DTYPES),
    st.integers(0, 9),
)
results = st.dictionaries(st.sampled_from("abc"), tensors, max_size=3)


@given(st.lists(st.lists(results, max_size=3), max_size=3))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing(batches) -> None:
    found = unpack(pack(batches))
    assert len(found) == len(batches)
    for got, want in zip(found, batches, strict=True):
        assert [list(r) for r in got] == [list(r) for r in want]
        for a, b in zip(got, want, strict=True):
            for name in b:
                assert a[name].dtype == b[name].dtype
                assert torch.equal(a[name], b[name])


def test_a_view_travels_without_what_it_is_a_view_of_and_once() -> None:
    whole = torch.arange(1_000_000.0)
    part = whole[5:9]
    memo: dict[int, torch.Tensor] = {}
    plan = _compact({"visits": [("op", {"value": part}), ("op", {"value": part})]}, memo)
    one, two = (args["value"] for _, args in plan["visits"])
    assert one is two
    assert torch.equal(one, part)
    assert one.untyped_storage().nbytes() == part.nbytes


def test_jobs_are_cut_by_each_limit(model) -> None:
    batch = pad(ROWS, model.pad_token)  # 15 positions

    def requests(i: int):
        return [forward_request(model, batch, [Capture("x", "resid_pre")])]

    size = size_of(model, requests(0))
    assert size.tokens == 15
    assert size.received == 15 * 8 * 128 * 4
    for limits, per_job in (
        (Limits(tokens=45), 3),
        (Limits(tokens=1), 1),  # never less than a batch
        (Limits(sent_bytes=2 * size.sent), 2),
        (Limits(received_bytes=4 * size.received), 4),
        (Limits(), 7),
    ):
        twin = remote_of(model)
        twin.backend = Ndif(SERVICE, "key", "org/model", limits)
        jobs = [job.batches for job in Batches(twin, requests).jobs(range(7))]
        assert [b for batches in jobs for b in batches] == list(range(7))
        assert max(map(len, jobs)) == per_job


def test_generated_tokens_and_gradients_count(model) -> None:
    batch = pad(ROWS, model.pad_token)
    assert size_of(model, [generate_request(model, batch, max_new_tokens=10)]).tokens == 45
    gradient = forward_request(model, batch, [Capture("x", "logits", live=True)], gradient=True)
    assert size_of(model, [gradient]).tokens == 45


OURS = """Traceback (most recent call last):
  File "/opt/py/lib/python3.12/asyncio/threads.py", line 25, in to_thread
  File "/home/me/study.py", line 74, in <module>
    results = nnsight.save(run_job(m, J))
  File "[walk:96] /home/me/code/refusal_nn/tracing/_walk.py", line 120, in walk
  File "/srv/lib/python3.12/site-packages/torch/nn/modules/module.py", line 1, in f
AttributeError: a-secret-key has no attribute '77'
"""


@pytest.mark.parametrize(
    ("said", "kind", "sentence"),
    [
        (OURS, BackendError, r"at refusal_nn/tracing/_walk\.py:120: AttributeError: \*\*\* has no"),
        ("Traceback (most recent call last):\ntorch.OutOfMemoryError: x", TooMuchError, "--batch-"),
        ("Error starting model. Please try again later.", UnavailableError, "Error starting"),
        ("Replica was evicted while processing your request.", UnavailableError, "evicted"),
        ("Could not deploy this model. No room.", BackendError, "cannot: No room; choose"),
        ("Your job exceeded the execution timeout of 9s.", TooMuchError, "smaller"),
        (
            "Your request payload could not be read (ModuleNotFoundError: No module named 'x').",
            PreflightError,
            r"No module named 'x'; call nnsight\.register",
        ),
        ("The model architecture on this server doesn't match.", BackendError, "remote status"),
        ("Something new.", BackendError, "failed the job: Something new"),
    ],
)
def test_what_a_server_says_becomes_a_sentence_with_the_fix(said, kind, sentence) -> None:
    error = failure_of(LINK, said)
    assert type(error) is kind
    assert "\n" not in str(error)
    with pytest.raises(kind, match=sentence):
        raise error
