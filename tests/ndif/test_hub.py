from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.ndif import hub_content
from tests.ndif.hub import parameters, serve
from tests.patience import limit

TINY = "refusal-nn/tiny-refuser"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hub")
    assert hub_content.fill(root) == [
        "refusal-nn/planted-gate",
        TINY,
        "refusal-nn/one-billion",
    ]
    return root


@pytest.fixture(scope="module")
def url(root: Path) -> Iterator[str]:
    server = serve(root, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _get(address: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    try:
        with urlopen(Request(address, method=method), timeout=limit(10)) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_a_file_is_served_whole_with_its_commit(root: Path, url: str) -> None:
    status, headers, body = _get(f"{url}/{TINY}/resolve/main/config.json")
    assert (status, body) == (200, (root / TINY / "config.json").read_bytes())
    assert len(headers["X-Repo-Commit"]) == 40
    by_commit = _get(f"{url}/{TINY}/resolve/{headers['X-Repo-Commit']}/config.json")
    assert by_commit[2] == body
    assert headers["ETag"] == by_commit[1]["ETag"]


def test_head_gives_the_size_and_no_body(root: Path, url: str) -> None:
    status, headers, body = _get(f"{url}/{TINY}/resolve/main/model.safetensors", "HEAD")
    size = (root / TINY / "model.safetensors").stat().st_size
    assert (status, int(headers["Content-Length"]), body) == (200, size, b"")


def test_another_revision_has_its_own_commit_and_files(url: str) -> None:
    commits = [
        json.loads(_get(f"{url}/api/models/{TINY}/revision/{name}")[2])["sha"]
        for name in ("main", "earlier")
    ]
    assert commits[0] != commits[1]
    assert _get(f"{url}/{TINY}/resolve/earlier/README.md")[0] == 200
    assert _get(f"{url}/{TINY}/resolve/{commits[1]}/README.md")[0] == 200
    assert _get(f"{url}/{TINY}/resolve/main/README.md")[0] == 404


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("api/models/refusal-nn/unknown", "RepoNotFound"),
        ("refusal-nn/unknown/resolve/main/config.json", "RepoNotFound"),
        (f"{TINY}@earlier/resolve/main/config.json", "RepoNotFound"),
        (f"api/models/{TINY}/revision/nope", "RevisionNotFound"),
        (f"{TINY}/resolve/nope/config.json", "RevisionNotFound"),
        (f"{TINY}/resolve/main/absent.json", "EntryNotFound"),
        (f"api/models/{TINY}/tree/main/folder", "EntryNotFound"),
        (f"{TINY}/resolve/main/%2e%2e%2fconfig.json", "EntryNotFound"),
        ("refusal-nn/../resolve/main/x", "EntryNotFound"),
        ("", "EntryNotFound"),
    ],
)
def test_what_is_not_there_is_answered_with_the_hub_s_code(url: str, path: str, code: str) -> None:
    status, headers, _ = _get(f"{url}/{path}")
    assert (status, headers["X-Error-Code"]) == (404, code)


def test_the_published_parameter_count_is_the_model_s(root: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(root / TINY / "model.safetensors")
    count = sum(tensor.numel() for tensor in weights.values())
    assert parameters(root / TINY) == {"parameters": {"F32": count}, "total": count}


def test_the_model_without_weights_counts_what_transformers_would_build(root: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = root / "refusal-nn" / "one-billion"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert parameters(folder)["total"] == count == 1_235_814_400
