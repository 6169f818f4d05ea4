"""A server computes; what it answers is data: nothing in it runs here, and it is as large as it may be."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pytest
import torch

from refusal_nn.backends import Limits, Ndif, Remote, Service
from refusal_nn.backends._payload import Batches, compress, decompress, load
from refusal_nn.backends._process import worker_of
from refusal_nn.backends.ndif import _service
from refusal_nn.errors import BackendError
from refusal_nn.testing import tiny_module, wrap
from refusal_nn.tracing import Capture, forward_request, pad, run
from tests.loopback import Loopback
from tests.patience import limit

BATCH = pad([[7, 8, 9]], 0)


class Server(Loopback):
    """Says of every job that it is done, and gives the same bytes as its result."""

    def __init__(self) -> None:
        self.result = b""
        super().__init__()

    def answer(self, path: str) -> bytes:
        if path == "/result":
            return self.result
        if path == "/request":
            return json.dumps({"id": "job", "status": "RECEIVED"}).encode()
        done = {"status": "COMPLETED", "description": "", "data": f"{self.url}/result"}
        return json.dumps(done).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        yield made


@pytest.fixture(scope="module")
def network() -> Any:
    """One for all tests, as the process that reads its jobs before they are sent takes seconds."""
    return wrap(copy.deepcopy(tiny_module("llama")), name="remote-llama")


@pytest.fixture
def model(network: Any, server: Server) -> Any:
    limits = Limits(deadline=limit(5), poll=0.001, backoff=0.001, received_bytes=1 << 20)
    network.backend = Ndif(Service(server.url), "key", "org/model", limits)
    return network


class Runs:
    """Unpickled, it makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def packed(value: Any, **how: Any) -> bytes:
    with io.BytesIO() as file:
        torch.save(value, file, **how)
        return file.getvalue()


def swollen(path: Path) -> bytes:
    """An archive of torch whose one number is packed as many."""
    data = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(packed({"x": torch.zeros(4)}))) as plain,
        zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for part in plain.infolist():
            content = plain.read(part)
            file.writestr(
                part.filename, b"\0" * (8 << 20) if "/data/" in part.filename else content
            )
    return data.getvalue()


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "a call in a result": lambda path: compress(packed({"x": Runs(path)})),
    "a call of the old format": lambda path: compress(
        packed({"x": Runs(path)}, _use_new_zipfile_serialization=False)
    ),
    "a bare pickle": lambda path: compress(pickle.dumps({"x": Runs(path)})),
    "a class of numpy": lambda path: compress(packed({"x": np.ones(3)})),
    "parts that unpack to more": lambda path: compress(swollen(path)),
    "a frame that unpacks to more": lambda path: compress(b"\0" * (17 << 20)),
    "no frame": lambda path: b"<html>",
    "nothing": lambda path: b"",
    "no mapping": lambda path: compress(packed([torch.zeros(3)])),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_trace_of_mine_brings_back_cannot_run(
    name: str, server: Server, model: Any, tmp_path: Path
) -> None:
    server.result = HOSTILE[name](tmp_path / "ran")
    with (
        pytest.raises(BackendError) as caught,
        model.nnsight.trace(BATCH.inputs(), backend=Remote(model, preflight=False)),
    ):
        nnsight.save(model.nnsight.model.layers[1].output)
    assert list(tmp_path.iterdir()) == []
    said = str(caught.value)
    assert "\n" not in said
    assert "weights_only" not in said  # torch's advice is to trust it
    assert server.url in said


@pytest.mark.parametrize("name", HOSTILE)
def test_what_an_analysis_brings_back_cannot_run(
    name: str, server: Server, model: Any, tmp_path: Path
) -> None:
    server.result = HOSTILE[name](tmp_path / "ran")
    request = forward_request(model, BATCH, [Capture("x", "resid_pre")])
    with pytest.raises(BackendError, match="cannot be read, nor could the one before it"):
        run(model, [request])
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_could_run_is_named_with_what_to_save_instead(
    server: Server, model: Any, tmp_path: Path
) -> None:
    server.result = HOSTILE["a call in a result"](tmp_path / "ran")
    with (
        pytest.raises(BackendError, match=r"plain values \(posix\.mkdir\), which could run code"),
        model.nnsight.trace(BATCH.inputs(), backend=Remote(model, preflight=False)),
    ):
        nnsight.save(model.nnsight.model.layers[1].output)


def test_tensors_and_plain_values_of_every_kind_come_back(server: Server, model: Any) -> None:
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
    value = {
        "tensors": [torch.ones(2, 3).to(kind) for kind in kinds],
        "view": torch.arange(12.0).view(3, 4)[:, 1:3].T,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
        "plain": (1, 2.5, "text", None, True, b"bytes", 1j, {3}, frozenset({4})),
        "ordered": OrderedDict(a=[{"b": ()}]),
        "of torch": (torch.Size([1, 2]), torch.float16, torch.device("cpu")),
    }
    server.result = compress(packed({"found": value}))
    with model.nnsight.trace(BATCH.inputs(), backend=Remote(model, preflight=False)):
        found = nnsight.save(model.nnsight.model.layers[1].output)
    assert repr(found) == repr(value)
    assert torch.equal(found["view"], value["view"])


def test_only_what_may_be_so_large_is_unpacked() -> None:
    data = compress(b"\0" * 1000)
    assert decompress(data, most=1000) == b"\0" * 1000
    with pytest.raises(ValueError, match="unpacks to 1000 bytes, and at most 999 are taken"):
        decompress(data, most=999)
    with pytest.raises(ValueError, match="unpack to more than it holds"):
        load(swollen(Path()))
    assert Limits(received_bytes=10).most_received == 160


def test_our_own_jobs_are_read_by_the_same_rule(model: Any) -> None:
    content = compress(packed({"answer": Runs(Path("never"))}))
    with pytest.raises(pickle.UnpicklingError):
        Batches(model, lambda _: ()).answers(Batches(model, lambda _: ()).job([]), content)


def test_the_files_of_a_process_beside_ours_are_for_us_alone(model: Any) -> None:
    folder = worker_of(model, weights=False)._folder
    assert folder is not None
    assert Path(folder.name).stat().st_mode & 0o777 == 0o700


def test_where_a_result_is_kept_is_asked_without_the_key(server: Server, model: Any) -> None:
    server.result = compress(packed({"found": torch.ones(2)}))
    model.backend.service.key = "the-key"
    with model.nnsight.trace(BATCH.inputs(), backend=Remote(model, preflight=False)):
        nnsight.save(model.nnsight.model.layers[1].output)
    heard = {asked.path: asked.key for asked in server.seen}
    assert heard["/result"] is None
    assert heard["/request"] == "the-key"


def test_an_answer_without_end_is_not_taken_whole(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_service, "MOST_RESULT_BYTES", 1 << 20)
    server.result = b"x" * (3 << 20)
    with pytest.raises(BackendError, match="answers with more than 1 MiB"):
        Service(server.url).download(f"{server.url}/result")
