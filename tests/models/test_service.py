"""What a server answers over HTTP, right or wrong, and what becomes of it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from refusal_nn.errors import BackendError, ModelError, RequestError, UnavailableError
from refusal_nn.models import Limits, Service, compare_versions, deployed, load_model
from refusal_nn.models import _remote as remote
from refusal_nn.models import _service as module

KEY = "0f0f0f0f-1111-2222-3333-444444444444"


class Handler(BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, list[tuple[int, Any]]]] = {}
    seen: ClassVar[list[tuple[str, dict[str, str], bytes]]] = []

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.seen.append((self.path, dict(self.headers), self.rfile.read(length)))
        script = self.answers.get(self.path.split("?")[0], [(404, {"detail": "Not Found"})])
        code, body = script.pop(0) if len(script) > 1 else script[0]
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[str]:
    Handler.answers, Handler.seen = {}, []
    monkeypatch.setattr(module, "PAUSES", (0.001, 0.001, 0.001))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("localhost:5001", "write it with its scheme"),
        ("ftp://localhost", "write it with its scheme"),
        ("http://me:word@localhost", "put the key in NDIF_API_KEY"),
    ],
)
def test_what_is_no_address_is_a_wrong_request(host: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Service.connect(host)
    assert "word@" not in str(caught.value)


def test_host_and_key_come_from_the_option_then_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("NDIF_HOST", "http://from-environment:1/")
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    assert Service.connect().host == "http://from-environment:1"
    found = Service.connect("https://option")
    assert (found.host, found.key) == ("https://option", KEY)
    assert KEY not in repr(found)


def test_a_job_is_sent_with_key_and_versions_and_its_bytes_are_counted(server: str) -> None:
    Handler.answers["/request"] = [(200, {"id": "abc", "status": "RECEIVED"})]
    service = Service(server, KEY)
    assert service.submit(b"payload", "model", {"a": 1}, True) == "abc"
    _, headers, body = Handler.seen[-1]
    headers = {k.lower(): v for k, v in headers.items()}
    assert headers["ndif-api-key"] == KEY
    assert headers["nnsight-version"]
    assert b'"model_key": "model"' in body
    assert b"payload" in body
    assert service.sent == len(b"payload")


@pytest.mark.parametrize(
    ("status", "data", "state", "url"),
    [
        ("QUEUED", None, "running", ""),
        ("COMPLETED", "http://there", "done", "http://there"),
        ("ERROR", None, "failed", ""),
    ],
)
def test_states_of_a_job(server: str, status, data, state, url) -> None:
    body = {"id": "a", "status": status, "description": f"with {KEY}", "data": data}
    Handler.answers["/response/a"] = [(200, body)]
    answer = Service(server, KEY).ask("a")
    assert answer is not None
    assert (answer.state, answer.status, answer.url) == (state, status, url)
    assert answer.message == "with ***"
    assert Service(server).ask("unknown") is None


@pytest.mark.parametrize(
    ("code", "detail", "kind", "said"),
    [
        (401, "Missing key", RequestError, "does not accept the access key .Missing key.; put a"),
        (400, f"Invalid API key format: '{KEY}'", RequestError, r"format: '\*\*\*'"),
        (403, "Invalid API key.", RequestError, "Invalid API key.; put a valid key"),
        (400, "Client nnsight version 0.1 is below", RequestError, "refuses the request: Client"),
        (404, "Not Found", RequestError, "no NDIF server"),
        (413, "too large", RequestError, "smaller --batch-size"),
        (429, "quota of 5 jobs", UnavailableError, "quota of 5 jobs; wait"),
        (503, "compute backend is reconnecting.", UnavailableError, "compute backend"),
    ],
)
def test_refusals_say_what_to_do_and_never_the_key(server: str, code, detail, kind, said) -> None:
    Handler.answers["/request"] = [(code, {"detail": detail})]
    with pytest.raises(kind, match=said) as caught:
        Service(server, KEY).submit(b"", "model", {}, True)
    assert isinstance(caught.value, kind)
    assert KEY not in str(caught.value)
    assert len(Handler.seen) == 1  # whether to ask again is for others to decide


def test_a_server_that_has_just_started_is_asked_again(server: str) -> None:
    Handler.answers["/status"] = [(500, {"detail": "no"}), (503, {"detail": "no"}), (200, {})]
    assert Service(server).status() == {}


def test_another_web_server_is_not_taken_for_one(server: str) -> None:
    Handler.answers["/status"] = [(200, b"<html>")]
    with pytest.raises(RequestError, match="is not an NDIF server"):
        Service(server).status()


def test_no_server_is_said_without_asking_again() -> None:
    with pytest.raises(UnavailableError, match=r"no server answers at http://127\.0\.0\.1:9;"):
        Service("http://127.0.0.1:9").status()


def test_a_result_that_is_gone_is_not_one_that_may_come(server: str) -> None:
    Handler.answers["/there"] = [(403, b"expired")]
    Handler.answers["/later"] = [(503, b"")]
    Handler.answers["/here"] = [(200, b"12345")]
    service = Service(server)
    with pytest.raises(BackendError, match="gone") as caught:
        service.download(f"{server}/there?X-Signature=private")
    assert not isinstance(caught.value, UnavailableError)
    assert "private" not in str(caught.value)
    with pytest.raises(UnavailableError):
        service.download(f"{server}/later")
    with pytest.raises(UnavailableError) as caught:
        service.download("http://127.0.0.1:9/there?X-Signature=private")
    assert "private" not in str(caught.value)
    assert service.download(f"{server}/here") == b"12345"
    assert service.received == 5


def replica(level: str = "HOT", state: str = "RUNNING", **more: Any) -> dict[str, Any]:
    key = remote.model_key("refusal-nn/tiny-refuser", more.get("revision"))
    return {
        "model_key": key,
        "repo_id": "refusal-nn/tiny-refuser",
        "revision": None,
        "task": "text-generation",
        "deployment_level": level,
        "application_state": state,
        "dtype": "bfloat16",
        **more,
    }


def test_replicas_of_a_model_are_one_deployment_in_its_best_state() -> None:
    replicas = {"a": replica("WARM"), "b": replica(state="DEPLOYING"), "c": replica()}
    cold = {"d": replica("COLD", repo_id="other", model_key="other")}
    (found,) = deployed({**replicas, **cold})
    assert found["level"], found["state"] == ("hot", "running")
    assert found["replicas"] == 3
    assert deployed(cold) == []


def test_a_remote_model_has_the_servers_dtype_and_the_local_ones_identity(server: str) -> None:
    Handler.answers["/status"] = [(200, {"deployments": {"a": replica()}})]
    there, here = (
        load_model("tiny-refuser", backend="ndif", host=server),
        load_model("tiny-refuser"),
    )
    assert all(p.is_meta for p in there.module.parameters())
    ours, theirs = here.identity(), there.identity()
    differing = {k for k in ours if ours[k] != theirs[k]}
    assert differing == {"dtype", "device", "backend"}
    assert theirs["dtype"] == "bfloat16"
    assert there.eos_tokens == here.eos_tokens
    assert there.chat.tokens(["hello"]) == here.chat.tokens(["hello"])
    assert there.arch == here.arch


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({"dtype": "float32"}, RequestError, "in bfloat16, not in float32"),
        (
            {"revision": "abc"},
            ModelError,
            "deployed at revision main, not abc; pass --revision main",
        ),
        ({"device": "cpu"}, RequestError, "the server chooses the device"),
    ],
)
def test_what_the_server_does_otherwise_is_refused(server: str, options, kind, said) -> None:
    Handler.answers["/status"] = [(200, {"deployments": {"a": replica()}})]
    with pytest.raises(kind, match=said):
        load_model("tiny-refuser", backend="ndif", host=server, **options)


@pytest.mark.parametrize("option", [{"host": "http://x"}, {"limits": Limits()}, {"detach": True}])
def test_options_of_a_server_are_refused_for_another_backend(option) -> None:
    with pytest.raises(RequestError, match="--backend ndif"):
        load_model("tiny-refuser", **option)


def test_a_folder_is_on_no_server(server: str, tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="is a folder here, which no server has"):
        load_model(str(tmp_path), backend="ndif", host=server)


@pytest.mark.parametrize(
    "wrong", [{"tokens": 0}, {"in_flight": -1}, {"deadline": 0}, {"retries": -1}]
)
def test_limits_must_be_possible(wrong) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Limits(**wrong)


def test_versions_are_compared_by_package() -> None:
    rows = {row["package"]: row for row in compare_versions({"torch": "0.1", "python": "3.12.1"})}
    assert rows["torch"]["server"] == "0.1"
    assert rows["torch"]["here"] not in ("0.1", None)
    assert rows["transformers"]["server"] is None
