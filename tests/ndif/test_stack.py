"""The server that the stack runs is a real one: it answers, refuses, and its parts can be killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from refusal_nn.models import _anyio  # noqa: F401 - before nnsight
from tests.long.tier import sampled
from tests.ndif import processes
from tests.ndif.control import Stack
from tests.patience import limit, wait_for

import nnsight  # isort: skip
from nnsight.intervention.backends.remote import (  # isort: skip
    AsyncRemoteBackend,
    RemoteBackend,
    RemoteError,
)
from nnsight.modeling.transformers import TransformersModel  # isort: skip
from nnsight.schema.config import CONFIG  # isort: skip
from websocket import WebSocketException  # isort: skip

pytestmark = pytest.mark.ndif
ROOT = Path(__file__).resolve().parents[2]
TINY = "refusal-nn/tiny-refuser"
ENOUGH = 3_000_000  # float32 values: 12 MB, over what the server sends back directly (8 MiB)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)


@pytest.fixture(scope="module")
def tiny() -> TransformersModel:
    return _load(TINY)


def _load(repository: str, **options: Any) -> TransformersModel:
    return TransformersModel(repository, task="text-generation", tokenizer=repository, **options)


def _ask(model: TransformersModel, url: str, key: str = "") -> torch.Tensor:
    """One small job: the last residual vector after block 2, shape (1, d_model)."""
    backend = RemoteBackend(model.to_model_key(), host=url, api_key=key)
    with model.trace("Tell me how to make tea.", backend=backend):
        found = nnsight.save(model.model.layers[2].output[:, -1].clone())
    return found  # noqa: RET504 - the body of a trace is sent away and cannot return


def _ask_until_answered(model: TransformersModel, url: str) -> torch.Tensor:
    """The server tells whoever comes first that a model or a connection of its own has died."""

    def answer() -> list[torch.Tensor]:
        try:
            return [_ask(model, url)]
        except RemoteError as error:
            if "try again later" in str(error) or "Internal server error" in str(error):
                return []
            raise

    return wait_for(answer, "an answer", every=0.5)[0]


def test_all_listening_sockets_are_loopback(stack: Stack, tiny: TransformersModel) -> None:
    _ask(tiny, stack.url())  # with a model deployed there are more of them
    assert len(stack.listening()) > 10
    assert stack.exposed() == []


def test_the_server_gives_the_numbers_of_a_local_run(stack: Stack, tiny: TransformersModel) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ROOT / "refusal_nn" / "models" / "organisms" / "tiny-refuser"
    local = AutoModelForCausalLM.from_pretrained(folder)
    encoded = AutoTokenizer.from_pretrained(folder)("Tell me how to make tea.", return_tensors="pt")
    with torch.no_grad():
        states = local(
            encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            output_hidden_states=True,
        ).hidden_states
    torch.testing.assert_close(_ask(tiny, stack.url()), states[3][:, -1], rtol=0, atol=1e-6)
    assert next(tiny._module.parameters()).is_meta


@pytest.mark.parametrize("part", sampled(["hub", "objects", "api", "dispatcher"], 1))
def test_after_a_part_is_killed_and_started_again_the_next_job_is_answered(
    stack: Stack, tiny: TransformersModel, part: str
) -> None:
    before = _ask(tiny, stack.url())
    (killed, *_) = stack.kill(part)
    assert not processes.command_line(killed)
    assert stack.pids(part) == []
    stack.start(part)
    assert killed not in stack.pids(part)
    assert torch.equal(_ask(tiny, stack.url()), before)


def test_after_redis_is_killed_and_started_again_jobs_are_answered(
    stack: Stack, tiny: TransformersModel
) -> None:
    before = _ask(tiny, stack.url())
    stack.kill("redis")
    stack.restart("redis")
    assert torch.equal(_ask_until_answered(tiny, stack.url()), before)


def test_a_killed_model_is_loaded_again_by_the_server(
    stack: Stack, tiny: TransformersModel
) -> None:
    before = _ask(tiny, stack.url())
    (killed, *_) = stack.kill("actor")
    after = _ask_until_answered(tiny, stack.url())
    assert torch.equal(after, before)
    assert killed not in stack.pids("actor")


def test_a_job_sent_while_the_dispatcher_is_dead_is_answered_once_it_is_back(
    stack: Stack, tiny: TransformersModel
) -> None:
    before = _ask(tiny, stack.url())
    stack.kill("dispatcher")
    answers: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: answers.append(_ask(tiny, stack.url())))
    thread.start()
    thread.join(3)
    assert thread.is_alive()
    assert answers == []
    stack.start("dispatcher")
    thread.join(limit(60))
    assert torch.equal(answers[0], before)


@pytest.fixture(scope="module")
def auth(stack: Stack, tiny: TransformersModel) -> str:
    stack.start("auth-api")
    url = stack.url("auth-api")

    def answers() -> bool:  # the first connections to a service that has just begun may be dropped
        try:
            _ask(tiny, url, "not-a-key")
        except RemoteError:
            return True
        except (WebSocketException, OSError):
            return False
        return True

    wait_for(answers, f"the service with keys at {url}", every=0.5)
    return url


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "Missing or invalid API key"),
        ("not-a-key", "Invalid API key format"),
        ("00000000-0000-4000-8000-000000000000", r"Invalid API key\.$"),
    ],
)
def test_the_api_with_keys_refuses_a_wrong_one(
    auth: str, tiny: TransformersModel, key: str, message: str
) -> None:
    with pytest.raises(RemoteError, match=message):
        _ask(tiny, auth, key)


def test_the_api_with_keys_takes_a_known_one(
    stack: Stack, auth: str, tiny: TransformersModel
) -> None:
    assert torch.equal(_ask(tiny, auth, stack.key("known")), _ask(tiny, stack.url()))
    assert stack.exposed() == []


def test_a_model_too_large_for_the_server_is_refused_with_the_reason(stack: Stack) -> None:
    with pytest.raises(RemoteError, match=r"Could not deploy this model\. CANT_ACCOMMODATE"):
        _ask(_load("refusal-nn/one-billion"), stack.url())


def test_a_second_model_and_a_second_revision_are_deployed_beside_the_first(
    stack: Stack, tiny: TransformersModel
) -> None:
    before = _ask(tiny, stack.url())
    assert _ask(_load("refusal-nn/planted-gate"), stack.url()).shape[0] == 1
    assert torch.equal(_ask(_load(TINY, revision="earlier"), stack.url()), before)
    # one that the server has just ended may still be there for a moment
    wait_for(lambda: len(stack.pids("actor")) == 3, lambda: f"three of {stack.pids('actor')}")


def test_an_unknown_revision_or_repository_is_refused_by_the_client_s_hub() -> None:
    with pytest.raises(OSError, match="nope is not a valid git identifier"):
        _load(TINY, revision="nope")
    with pytest.raises(OSError, match="refusal-nn/unknown is not a local folder"):
        _load("refusal-nn/unknown")


def test_a_revision_that_only_the_client_believes_in_is_refused_by_the_server(stack: Stack) -> None:
    model = _load(TINY)
    model.revision = "nope"
    with pytest.raises(RemoteError, match="Could not deploy this model"):
        _ask(model, stack.url())


def test_a_result_over_the_inline_limit_comes_through_the_object_store(
    stack: Stack, tiny: TransformersModel
) -> None:
    seen = stack.log("objects").count(".pt?")
    with tiny.trace("tea", remote=stack.url()):
        torch.manual_seed(3)
        sent = nnsight.save(torch.randn(ENOUGH))
    torch.manual_seed(3)
    assert torch.equal(sent, torch.randn(ENOUGH))
    assert stack.log("objects").count(".pt?") > seen


def test_it_comes_through_to_the_asynchronous_client_too(
    stack: Stack, tiny: TransformersModel
) -> None:
    backend = AsyncRemoteBackend(tiny.to_model_key(), host=stack.url())
    with tiny.trace("tea", backend=backend):
        torch.manual_seed(3)
        sent = nnsight.save(torch.randn(ENOUGH))  # noqa: F841 - returned by name

    async def wait() -> Any:
        return await backend

    torch.manual_seed(3)
    assert torch.equal(asyncio.run(wait())["sent"], torch.randn(ENOUGH))


def test_a_large_request_is_read(stack: Stack, tiny: TransformersModel) -> None:
    big = torch.randn(ENOUGH, generator=torch.Generator().manual_seed(4))
    with tiny.trace("tea", remote=stack.url()):
        total = nnsight.save(big.double().sum())
    torch.testing.assert_close(total, big.double().sum())


def test_a_job_that_nobody_waits_for_is_collected_by_its_id(
    stack: Stack, tiny: TransformersModel
) -> None:
    before = _ask(tiny, stack.url())
    backend = RemoteBackend(tiny.to_model_key(), host=stack.url(), blocking=False)
    with tiny.trace("Tell me how to make tea.", backend=backend):
        found = nnsight.save(tiny.model.layers[2].output[:, -1].clone())  # noqa: F841
    later = RemoteBackend(
        tiny.to_model_key(), host=stack.url(), blocking=False, job_id=backend.job_id
    )
    assert torch.equal(wait_for(later, "the result", every=0.1)["found"], before)


@pytest.fixture
def second(stack: Stack, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another whole stack beside the one that runs these tests."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.ndif.stack", "--venv", stack.state["venv"]),
            *("--logs", str(tmp_path), "--", "bash", "-c", "touch $0; sleep infinity"),
            str(tmp_path / "up"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    yield process
    process.terminate()
    process.communicate(timeout=limit(60))


@pytest.mark.long
def test_killing_a_whole_stack_leaves_none_of_its_processes(
    second: subprocess.Popen[str], tmp_path: Path, stack: Stack
) -> None:
    up = tmp_path / "up"
    wait_for(lambda: up.exists() or second.poll() is not None, "the second stack", 180)
    assert second.poll() is None
    below = {pid: processes.start_time(pid) for pid in processes.descendants(second.pid)}
    assert len(below) > 20
    os.kill(second.pid, signal.SIGKILL)

    def left() -> list[str]:
        there = [pid for pid, begun in below.items() if processes.start_time(pid) == begun]
        return [f"{pid} {processes.command_line(pid)}" for pid in there]

    wait_for(lambda: not left(), lambda: f"the end of {left()}", 30)
    assert stack.answers("api")
