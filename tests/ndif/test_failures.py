"""Whatever goes wrong with a server becomes one sentence with its fix, and never shows a key."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import nnsight
import numpy as np
import pytest
import torch
import xarray as xr
from click.testing import CliRunner, Result

import refusal_nn as rn
from refusal_nn.backends import Limits, Remote
from refusal_nn.cli import cli
from refusal_nn.errors import (
    BackendError,
    ModelError,
    PreflightError,
    RequestError,
    UnavailableError,
)
from refusal_nn.tracing import Capture, capture_tokens, forward_request, pad, run, verify
from tests.ndif.control import Stack

nnsight.register("tests")  # as the functions of a script, which travel by themselves

SECRET = "12345678-aaaa-bbbb-cccc-1234567890ab"


@pytest.fixture(scope="module")
def model(stack: Stack):
    return rn.load_model("tiny-refuser", backend="ndif", host=stack.url())


def refused(call: Callable[[], object], kind: type[Exception], *said: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in text
    assert text.endswith(".")
    for part in said:
        assert part in text


def command(*words: str) -> Result:
    return CliRunner().invoke(cli, list(words))


def show(host: str, *more: str) -> Result:
    return command("models", "show", "tiny-refuser", "--backend", "ndif", "--host", host, *more)


def test_no_server_is_the_works_failure_and_says_where_it_looked() -> None:
    result = show("http://127.0.0.1:9")
    assert result.exit_code == 1
    assert "no server answers at http://127.0.0.1:9; check --host" in result.stderr


def test_an_address_without_a_scheme_is_a_wrong_request() -> None:
    result = show("127.0.0.1:9")
    assert result.exit_code == 2
    assert "write it with its scheme" in result.stderr


def test_a_server_of_something_else_is_a_wrong_request(stack: Stack) -> None:
    result = show(stack.url("hub"))
    assert result.exit_code == 2
    assert "no NDIF server at" in result.stderr


def test_an_unknown_model_is_a_wrong_request(stack: Stack) -> None:
    def load() -> None:
        rn.load_model("refusal-nn/nothing", backend="ndif", host=stack.url())

    refused(load, ModelError, "refusal-nn/nothing", "the hub has no such model")


def test_an_unknown_revision_is_a_wrong_request(stack: Stack) -> None:
    def load() -> None:
        rn.load_model("refusal-nn/tiny-refuser", backend="ndif", host=stack.url(), revision="nope")

    refused(load, ModelError, "not at this revision")


def test_another_revision_than_the_deployed_one_is_a_wrong_request(stack: Stack, model) -> None:
    verify(model)  # deploys it

    def load() -> None:
        name, revision = "refusal-nn/tiny-refuser", "earlier"
        rn.load_model(name, backend="ndif", host=stack.url(), revision=revision)

    refused(load, ModelError, "deployed at revision main, not earlier", "--revision")


def test_another_dtype_than_the_deployed_one_is_a_wrong_request(stack: Stack, model) -> None:
    verify(model)

    def load() -> None:
        rn.load_model("tiny-refuser", backend="ndif", host=stack.url(), dtype="bfloat16")

    refused(load, RequestError, "in float32, not in bfloat16")


def test_a_model_that_cannot_be_deployed_fails_with_the_servers_reason(stack: Stack) -> None:
    large = rn.load_model("refusal-nn/one-billion", backend="ndif", host=stack.url())
    refused(lambda: verify(large), BackendError, "has not deployed", "CANT_ACCOMMODATE", "status")


@pytest.mark.parametrize("kind", ["none", "malformed", "unknown"])
def test_a_wrong_key_is_a_wrong_request_and_is_not_repeated(
    stack: Stack, monkeypatch, tmp_path: Path, kind: str
) -> None:
    stack.start("auth-api")
    key = {"none": "", "malformed": "no-key-of-yours-at-all", "unknown": stack.key("unknown")}[kind]
    monkeypatch.setenv("NDIF_API_KEY", key)
    words = ["direction", "extract", "--model", "tiny-refuser", "--prompts", "tiny-bench"]
    where = ["--backend", "ndif", "--host", stack.url("auth-api"), "--stores", str(tmp_path)]
    result = command(*words, *where, "--json")
    assert result.exit_code == 2
    assert "access key" in result.stderr
    assert "login.ndif.us" in result.stderr
    assert not key or key not in everything(result, tmp_path)


def test_a_right_key_works_and_stands_nowhere(stack: Stack, monkeypatch, tmp_path: Path) -> None:
    stack.start("auth-api")
    monkeypatch.setenv("NDIF_API_KEY", stack.key("known"))
    words = ["direction", "extract", "--model", "tiny-refuser", "--prompts", "tiny-bench"]
    where = ["--backend", "ndif", "--host", stack.url("auth-api"), "--stores", str(tmp_path)]
    left = command(*words, *where, "--name", "kept", "--detach")
    assert left.exit_code == 0, left.output
    assert stack.key("known") not in everything(left, tmp_path)  # the ledger of a partial run too
    again = ["--stores", str(tmp_path), "--host", stack.url("auth-api")]
    result = command("runs", "resume", "kept", *again, "--json")
    assert result.exit_code == 0, result.output
    status = command("--log-level", "debug", "remote", "status", "--host", stack.url("auth-api"))
    assert "@" in status.output  # the key's owner, so that it was sent
    assert stack.key("known") not in everything(result, tmp_path) + status.output


def everything(result: Result, folder: Path) -> str:
    """What a command printed, every traceback of its error, and every byte it stored."""
    found = [result.output, result.stderr]
    error: BaseException | None = result.exception
    while error is not None:
        found += traceback.format_exception(error)
        error = error.__cause__ or error.__context__
    found += [p.read_bytes().decode("latin-1") for p in folder.rglob("*") if p.is_file()]
    return "\n".join(found)


def test_a_function_that_cannot_travel_is_refused_before_anything_is_sent(model) -> None:
    lock, before = threading.Lock(), model.backend.service.sent

    def locked() -> None:
        with model.nnsight.trace("how are you", backend=Remote(model)):
            held = lock
            nnsight.save((model.nnsight.model.layers[0].output, held.locked()))

    def uninstalled() -> None:
        with model.nnsight.trace("how are you", backend=Remote(model)):
            nnsight.save(xr.DataArray(model.nnsight.model.layers[0].output))

    refused(locked, PreflightError, "cannot be serialised", "keep locks")
    refused(uninstalled, PreflightError, "xarray")
    assert model.backend.service.sent == before


LOCK = threading.Lock()


def locked(x: torch.Tensor) -> torch.Tensor:
    with LOCK:
        return 2 * x


def labelled(x: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(xr.DataArray(x).values)


def shortened(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (locked, ("cannot be serialised", "keep locks")),
        (labelled, ("test_failures.labelled refers to xarray", "nnsight.register('xarray')")),
    ],
)
def test_an_intervention_that_cannot_travel_is_refused_before_anything_is_sent(
    model, function, said: tuple[str, ...]
) -> None:
    before = model.backend.service.sent
    edits = [rn.FunctionIntervention(function, layers=[3])]
    refused(lambda: rn.tracing.generate(model, ["hello"], edits), PreflightError, *said)
    prompts = rn.load_prompts("tiny-bench").test[::40]
    refused(lambda: rn.evaluate(model, prompts, {"mine": edits}), PreflightError, *said)
    assert model.backend.service.sent == before


def test_an_intervention_that_fails_on_the_server_is_named(model) -> None:
    edits = [rn.FunctionIntervention(shortened, layers=[3])]
    reason = r"ValueError: function .*test_failures\.shortened must return a tensor of shape"
    with pytest.raises(BackendError, match=reason):
        rn.tracing.generate(model, ["hello"], edits, max_new_tokens=2)


def test_a_package_the_server_lacks_is_named_when_nobody_checked_before(model) -> None:
    def unchecked() -> None:
        with model.nnsight.trace("how are you", backend=Remote(model, preflight=False)):
            nnsight.save(xr.DataArray(model.nnsight.model.layers[0].output))

    refused(unchecked, PreflightError, "'xarray'", "nnsight.register")


def test_an_error_on_the_server_is_shown_with_the_place_in_my_file(model) -> None:
    def fails() -> None:
        with model.nnsight.trace("how are you", backend=Remote(model)):
            nnsight.save(model.nnsight.model.layers[0].output)
            raise ValueError("mine")

    refused_text = r"at test_failures\.py:\d+: ValueError: mine"
    with pytest.raises(BackendError, match=refused_text):
        fails()


def test_an_error_of_our_own_code_is_shown_with_our_file(model) -> None:
    batch = pad([[5, 6, 7]], 0)
    request = forward_request(model, batch, [Capture("x", "resid_pre")])
    request.plan["visits"][0]["path"] = "model.layers.77"
    with pytest.raises(BackendError, match=r"refusal_nn/shipped/parts\.py:\d+: AttributeError"):
        run(model, [request])


def test_my_own_trace_gives_the_same_numbers_here_and_there(model) -> None:
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    local = rn.load_model("tiny-refuser")

    def norms(of, **where) -> np.ndarray:
        network = of.nnsight
        with network.trace("how are you", **where):
            found = nnsight.save(doubled(network.model.layers[3].output).norm(dim=-1))
        return found.detach().numpy()

    np.testing.assert_allclose(norms(model, backend=Remote(model)), norms(local), atol=1e-5)


def test_a_result_far_above_what_a_server_gives_inline_arrives_whole(model) -> None:
    # jobs are never waited for inline, where the server's limit is 8 MiB, so this one has none
    rows = [[(7 * i + j) % 900 for j in range(64)] for i in range(64)]
    sites = [Capture("x", "resid_post"), Capture("y", "mlp_out")]
    local = rn.load_model("tiny-refuser")
    received = model.backend.service.received
    found = capture_tokens(model, rows, sites, batch_size=64)
    assert model.backend.service.received - received > 20 << 20  # compressed
    expected = capture_tokens(local, rows, sites, batch_size=64)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_a_server_that_is_gone_is_asked_again_and_then_given_up(model) -> None:
    limits = Limits(deadline=2.0, backoff=0.01)
    gone = rn.load_model("tiny-refuser", backend="ndif", limits=limits)
    gone.backend.service.host = "http://127.0.0.1:9"
    refused(lambda: verify(gone), UnavailableError, "no server answers")
    assert gone.backend.retried > 2
