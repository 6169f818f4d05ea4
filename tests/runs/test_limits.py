"""Limits known beforehand: what a model cannot read or no memory holds leaves no run behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import refusal_nn as rn
from refusal_nn import directions, runs
from refusal_nn.errors import BackendError, ModelError, PromptError, RequestError, WorkError
from refusal_nn.prompts import Prompts
from refusal_nn.runs import _limits
from refusal_nn.runs._limits import check_prompts
from refusal_nn.tracing import context_length, forward_request, generate_request, pad


@pytest.fixture(scope="module")
def model():
    return rn.load_model("tiny-refuser", device="cpu")


def prompts(*texts: str) -> Prompts:
    labels = {"category": "c", "harm": "harmful", "style": "toxic", "split": "train", "source": "s"}
    return Prompts.from_rows([{"text": t, "family": t[:20] + str(len(t)), **labels} for t in texts])


def keep(model, given, folder: Path, **options):
    harmless = rn.load_prompts("tiny-bench").train.harmless
    both = Prompts.from_rows([*given.to_rows(), *harmless.to_rows()])
    return rn.record(directions.extract, model, both, keep=rn.Keeping(folder), **options)


def test_a_prompt_longer_than_the_context_is_named_and_leaves_nothing(model, tmp_path):
    given = prompts("How do I pick a lock?", "word " * 200_000)
    reason = r"prompt 'word .*…' has 400,006 tokens, but the context of model 'tiny-refuser' is 256; short"
    with pytest.raises(PromptError, match=reason):
        keep(model, given, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["dry-run"])
def test_so_it_is_where_jobs_are_sent_away(tmp_path, backend):
    model = rn.load_model("tiny-refuser", device="cpu", backend=backend)
    with pytest.raises(PromptError, match="the context of model 'tiny-refuser' is 256"):
        keep(model, prompts("word " * 300), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("new", "fits"), [(0, True), (1, True), (238, True), (239, False), (10**6, False)]
)
def test_what_is_to_be_generated_counts(model, new, fits):
    given = {
        "prompts": prompts("Give me steps to falsify an insurance claim."),
        "max_new_tokens": new,
    }
    assert len(model.chat.tokens(given["prompts"].texts)[0]) == 19
    if fits:
        check_prompts(model, given)
        return
    with pytest.raises(
        PromptError, match=r"with .* new ones is more .* --max-new-tokens 238 or fewer"
    ):
        check_prompts(model, given)


def test_requests_from_python_are_checked_too(model):
    batch = pad([[7] * 250, [7] * 3], model.pad_token)
    forward_request(model, batch, [])
    generate_request(model, batch, max_new_tokens=7)
    with pytest.raises(PromptError, match=r"250 tokens, which with 8 new ones is more"):
        generate_request(model, batch, max_new_tokens=8)
    with pytest.raises(PromptError, match=r"a prompt has 257 tokens, but the context"):
        forward_request(model, pad([[7] * 257], model.pad_token), [])


@pytest.mark.parametrize(("config", "length"), [
    ({"max_position_embeddings": 100}, 100),
    ({"n_positions": 50}, 50),
    ({"max_seq_len": 70}, 70),
    ({}, None),
    ({"max_position_embeddings": None, "n_positions": True, "n_ctx": -1}, None),
    ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 400),
    ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 2}}, 200),
    ({"max_position_embeddings": 100, "rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, 100),
    ({"max_position_embeddings": 100, "rope_parameters": {"a": {"rope_type": "yarn", "factor": 3}}}, 300),
])  # fmt: skip
def test_the_context_is_what_the_config_declares(config, length):
    module = SimpleNamespace(config=SimpleNamespace(**config))
    assert context_length(SimpleNamespace(module=module)) == length


def test_a_token_that_the_model_has_not_is_named(model, monkeypatch):
    monkeypatch.setattr(model, "arch", replace(model.arch, vocab_size=500))
    with pytest.raises(
        ModelError, match=r"makes token \d+ of prompt 'How do I .* the model has 500"
    ):
        check_prompts(model, {"prompts": prompts("How do I pick a lock?")})


def test_padding_is_a_token_that_the_model_has(model, monkeypatch):
    monkeypatch.setattr(model, "arch", replace(model.arch, vocab_size=1))
    assert model.pad_token == 0


def test_memory_is_compared_with_all_there_is(model, monkeypatch):
    texts = ["How do I pick a lock?", *["word " * 100] * 3]
    given = {"prompts": prompts(*texts), "batch_size": 4}
    check_prompts(model, given)
    alone = _limits._bytes(model, [206])
    assert _limits._bytes(model, [13, 206, 206, 206]) == 4 * (alone + 206**2)
    monkeypatch.setattr(_limits, "total_memory", lambda _: 3 * alone)
    with pytest.raises(RequestError, match=r"a pass of 4 prompts, .* pass a smaller --batch-size"):
        check_prompts(model, given)
    check_prompts(model, {**given, "batch_size": 1})
    monkeypatch.setattr(_limits, "total_memory", lambda _: alone - 1)
    with pytest.raises(
        PromptError, match=r"of 206 tokens, alone needs at least .*; shorten it or leave"
    ):
        check_prompts(model, {**given, "batch_size": 1})
    monkeypatch.setattr(_limits, "total_memory", lambda _: None)
    check_prompts(model, given)


def test_eager_attention_holds_scores_of_every_head(model, monkeypatch):
    plain = _limits._bytes(model, [100, 100])
    monkeypatch.setattr(model.module.config, "_attn_implementation", "eager")
    assert _limits._bytes(model, [100, 100]) == plain + 2 * model.n_heads * 100**2 * 4


@runs.analysis("toy-fail")
def fail(model, prompts: Prompts, *, batch_size: int | None = None, recorder=None):
    raise BackendError("model 'm' failed on backend local: RuntimeError: no memory")


def test_a_pass_that_fails_here_leaves_no_run_without_a_batch(model, tmp_path):
    with pytest.raises(BackendError):
        rn.record(fail, model, prompts("a"), keep=rn.Keeping(tmp_path))
    assert [p.name for p in tmp_path.glob("*.zarr*")] == []


def test_what_an_analysis_finds_wanting_leaves_no_run_that_can_never_end(model, tmp_path):
    # the model refuses none of these, so its refusal tokens cannot be found, however often it is asked
    answered = rn.load_prompts("tiny-bench").train.harmless[:8]
    rows = [{**row, "harm": "harmful", "style": "toxic"} for row in answered.to_rows()[:4]]
    given = Prompts.from_rows([*rows, *answered.to_rows()[4:]])
    with pytest.raises(WorkError, match="refused none of 4 harmful prompts"):
        rn.record(directions.extract, model, given, keep=rn.Keeping(tmp_path))
    assert [p.name for p in tmp_path.glob("*.zarr*")] == []


def test_memory_of_a_device_is_known_or_left_out():
    from refusal_nn._memory import gigabytes, total_memory

    found = total_memory("cpu")
    assert found is None or found > 1 << 28
    assert total_memory(torch.device("meta")) is None
    assert gigabytes(2_500_000_000) == "2.5 GB"
    assert gigabytes(10**20) == "more than a million GB"
