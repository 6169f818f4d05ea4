"""What a server answers over HTTP, right or wrong, and what becomes of it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest

from refusal_nn.backends import Limits, Ndif, Service, compare_versions, deployed
from refusal_nn.backends.ndif import _deployments as deployments_module
from refusal_nn.backends.ndif import _service as module
from refusal_nn.backends.ndif import _shape as shape
from refusal_nn.errors import BackendError, ModelError, RequestError, UnavailableError
from refusal_nn.models import load_model

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
        ("http://[::1", "is not an address"),
        ("http://localhost:99999999", "is not an address"),
        ("http://:5001", "is not an address"),
        ("http://me:word@[::1", "is not an address"),
    ],
)
def test_what_is_no_address_is_a_wrong_request(host: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        Service.connect(host)
    assert "word@" not in str(caught.value)


@pytest.mark.parametrize(
    "host", ["http://ndif.example", "http://10.0.0.1:5001", "http://127.1.evil", "http://127.0.0.2"]
)
def test_the_key_goes_over_http_to_this_machine_alone_unless_it_is_allowed(
    monkeypatch, host
) -> None:
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    with pytest.raises(RequestError, match=r"everybody on the way.*--plain-http") as caught:
        Service.connect(host)
    assert KEY not in str(caught.value)
    assert Service.connect(host, plain_http=True).host == host
    for here in ("http://localhost:1", "http://127.0.0.1:1", "http://[::1]:1"):
        assert Service.connect(here).key == KEY
    monkeypatch.delenv("NDIF_API_KEY")
    monkeypatch.setattr("nnsight.schema.config.CONFIG.API.APIKEY", None)
    assert Service.connect(host).key == ""


def test_host_and_key_come_from_the_option_then_the_environment(monkeypatch) -> None:
    monkeypatch.setenv("NDIF_HOST", "https://from-environment:1/")
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    assert Service.connect().host == "https://from-environment:1"
    found = Service.connect("https://option")
    assert (found.host, found.key) == ("https://option", KEY)
    assert KEY not in repr(found)


@pytest.mark.parametrize("key", ["schlüssel-secret", "secret\rkey", "secret key", "secret\nkey"])
def test_what_no_key_can_be_is_refused_before_anything_is_sent(monkeypatch, key: str) -> None:
    monkeypatch.setenv("NDIF_API_KEY", key)
    with pytest.raises(RequestError, match=r"the access key holds .*put a valid key in") as caught:
        Service.connect("http://localhost:1")
    assert "secret" not in str(caught.value)


def test_the_line_break_after_a_key_read_from_a_file_is_not_part_of_it(monkeypatch) -> None:
    monkeypatch.setenv("NDIF_API_KEY", f" {KEY}\r\n")
    assert Service.connect("http://localhost:1").key == KEY


PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY")


@pytest.mark.parametrize(
    ("proxy", "fix"),
    [
        ("socks5h://me:word@127.0.0.1:9", r"install httpx\[socks\]"),
        ("foo://me:word@127.0.0.1:9", "not an address of a proxy"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named_and_this_machine_needs_none(
    server: str, monkeypatch, proxy: str, fix: str
) -> None:
    for name in (*PROXIES, "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("ALL_PROXY", proxy)
    Handler.answers["/status"] = [(200, {"deployments": {}})]
    assert Service.connect(server).status() == {}
    with pytest.raises(RequestError, match=f"the proxy in ALL_PROXY cannot be used .*{fix}") as got:
        Service.connect("http://elsewhere.invalid").status()
    assert "word" not in str(got.value)


def test_a_server_of_this_machine_is_asked_without_the_proxy(server: str, monkeypatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    Handler.answers["/status"] = [(200, {"deployments": {}})]
    assert Service.connect(server).status() == {}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"deployments": None}, {}),
        ({"deployments": {"a": None, "b": {"repo_id": "x"}}}, {"b": {"repo_id": "x"}}),
    ],
)
def test_fields_that_are_missing_are_empty(server: str, body, found) -> None:
    Handler.answers["/status"] = [(200, body)]
    assert Service(server).status() == found
    assert deployed({"a": {"deployment_level": "HOT"}})[0]["repository"] is None
    Handler.answers["/env"] = [(200, {"packages": None})]
    assert Service(server).environment() == {}


def test_fields_of_another_kind_are_no_ndif_server(server: str) -> None:
    Handler.answers["/status"] = [(200, {"deployments": []})]
    with pytest.raises(RequestError, match=r"not an NDIF server .* its deployments are a list"):
        Service(server).status()


def test_the_log_of_requests_holds_no_address_that_grants_access(server: str, caplog) -> None:
    Handler.answers["/there"] = [(200, b"12345")]
    with caplog.at_level(logging.DEBUG):
        Service(server, KEY).download(f"{server}/there?X-Signature=private")
        with pytest.raises(UnavailableError):
            Service("http://127.0.0.1:9", KEY).download("http://127.0.0.1:9/x?X-Signature=private")
    assert f"{server}/there" in caplog.text  # it is logged
    assert "private" not in caplog.text
    assert KEY not in caplog.text


@pytest.mark.parametrize("before", range(470, 501, 5))
def test_no_part_of_a_key_is_left_where_a_long_message_is_cut(server: str, before: int) -> None:
    Handler.answers["/request"] = [(400, {"detail": "x" * before + KEY + "y" * 50})]
    with pytest.raises(RequestError) as caught:
        Service(server, KEY).submit(b"", "model", {}, True)
    assert KEY[:4] not in str(caught.value)


def test_an_address_of_a_result_that_is_none_is_said(server: str) -> None:
    for url in ("", "http://h:port/x?X-Signature=private"):
        with pytest.raises(BackendError, match="at no address that can be read") as caught:
            Service(server).download(url)
        assert "private" not in str(caught.value)


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
    key = deployments_module.model_key("refusal-nn/tiny-refuser", more.get("revision"))
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
    assert (found["level"], found["state"]) == ("hot", "running")
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


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("there", "asked", "commit", "used", "by_commit"),
    [
        ([None], None, COMMIT, None, False),
        ([None], "main", COMMIT, None, False),
        (["main"], None, COMMIT, "main", False),
        (["main", None], "main", COMMIT, "main", False),
        ([None], COMMIT, COMMIT, None, True),
        (["v1", "main"], COMMIT, COMMIT, "main", True),
        (["v1"], COMMIT, COMMIT, "v1", True),
        ([None, COMMIT], COMMIT, COMMIT, COMMIT, False),
        ([None], "v1", COMMIT, "v1", False),
        ([], COMMIT, COMMIT, COMMIT, False),
    ],
)
def test_a_model_is_used_under_the_name_the_server_has_it(
    there, asked, commit, used, by_commit
) -> None:
    repo = "refusal-nn/tiny-refuser"
    deployments = {str(i): replica(revision=name) for i, name in enumerate(there)}
    found = deployments_module.key_at(deployments, repo, asked, commit, trust_remote_code=False)
    assert found == (deployments_module.model_key(repo, used), by_commit)
    trusted = deployments_module.key_at(deployments, repo, asked, commit, trust_remote_code=True)
    assert trusted == (deployments_module.model_key(repo, asked, trust_remote_code=True), False)


def test_main_is_the_copy_that_is_there(server: str) -> None:
    Handler.answers["/status"] = [(200, {"deployments": {"a": replica()}})]
    found = load_model("tiny-refuser", backend="ndif", host=server, revision="main")
    assert isinstance(found.backend, Ndif)
    assert found.backend.key == deployments_module.model_key("refusal-nn/tiny-refuser", None)


def test_a_hub_that_cannot_be_reached_is_not_a_wrong_name(monkeypatch) -> None:
    def unreachable(*_: Any) -> None:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    with pytest.raises(UnavailableError, match="the hub cannot be asked about 'org/name'"):
        shape.hub_name("org/name")


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
