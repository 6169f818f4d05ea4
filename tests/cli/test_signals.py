"""SIGTERM and Ctrl-C in real processes: what is whole is kept, and nobody is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from refusal_nn import store
from tests.cli.test_kill import extract, finish, with_files
from tests.patience import limit, wait_for

NAME = "killed"
WAITS_AFTER_A_BATCH = (
    "import time, refusal_nn.store.run_recorder as recorder; told = recorder.report; "
    "recorder.report = lambda at, stage, done, n: (told(at, stage, done, n), "
    "done == 1 and time.sleep(600))"
)
"""A run that has written its first batch, and is amid the batches until it is ended."""
WAITS_AMID_A_WRITE = (
    "import asyncio, zarr.storage, refusal_nn.store.run_recorder as recorder\n"
    "told = recorder.report\n"
    "async def wait(*_, **__):\n"
    "    print('writing', file=sys.stderr, flush=True)\n"
    "    await asyncio.sleep(600)\n"
    "def report(at, stage, done, n):\n"
    "    told(at, stage, done, n)\n"
    "    if done == 1: zarr.storage.LocalStore.set = wait\n"
    "recorder.report = report\n"
)
"""A run whose second batch never gets written: zarr's loop is amid it when the process is ended."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_files(tmp_path_factory.mktemp("signals"))


def start(folder: Path, *argv: str, before: str = "pass") -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    # a shell gives what it runs in the background a Ctrl-C that is ignored
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; import conftest, sys; from refusal_nn.cli import main\n{before}\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=limit(30))
    return process.returncode, out, err


def wait_for_a_batch(process: subprocess.Popen[str], folder: Path, stores: str) -> None:
    """Wait until the first batch of a run is on the disk."""
    partial = folder / stores / f"{NAME}.zarr.partial"
    wait_for(
        lambda: any(partial.rglob("written/c/*")) or process.poll() is not None, "a first batch"
    )
    assert process.poll() is None, process.communicate()[1]


@pytest.mark.parametrize(
    ("number", "code", "kind"),
    [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_amid_the_batches_keeps_them_and_the_run_goes_on(
    folder: Path, number: signal.Signals, code: int, kind: str
) -> None:
    stores = f"stores-{kind}"
    process = start(folder, *extract(stores), "--json", before=WAITS_AFTER_A_BATCH)
    wait_for_a_batch(process, folder, stores)
    process.send_signal(number)
    returned, out, err = ended(process)
    assert returned == code, err
    error = json.loads(out)["error"]
    assert error["kind"] == kind
    assert "refusal-nn runs resume NAME" in error["fix"]
    assert err.strip("\n").splitlines()[-1] == f"Error: {error['message']}"
    assert "Traceback" not in err
    assert (folder / stores / f"{NAME}.zarr.partial").exists()
    if number == signal.SIGTERM:
        finish(folder, *extract(stores), "--resume")
        store.verify(folder / stores / f"{NAME}.zarr")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_amid_a_write_ends_with_its_own_sentence_alone(
    folder: Path, number: signal.Signals
) -> None:
    process = start(folder, *extract(f"stores-write-{number}"), before=WAITS_AMID_A_WRITE)
    assert process.stderr is not None
    while process.stderr.readline() != "writing\n":
        assert process.poll() is None
    process.send_signal(number)
    returned, out, err = ended(process)
    assert (returned, out) == (128 + number, "")
    said = "terminated" if number == signal.SIGTERM else "interrupted"
    assert [line for line in err.splitlines() if line.strip("\r ")][-1].startswith(
        f"Error: {said}."
    )
    assert "asyncio" not in err


@pytest.mark.parametrize("after", [0.3, 1.2, 2.5])
def test_a_signal_while_all_is_imported_and_loaded_ends_it(folder: Path, after: float) -> None:
    # on a machine so fast that all is loaded by then, it is ended where it waits
    told = f"{WAITS_AFTER_A_BATCH}; print('begun', file=sys.stderr, flush=True)"
    process = start(folder, *extract(f"stores-{after}"), before=told)
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    time.sleep(after)
    process.send_signal(signal.SIGTERM)
    returned, out, err = ended(process)
    assert (returned, out) == (143, "")
    assert err.startswith("Error: terminated. If a run was begun, its finished batches are kept")
    assert err.count("\n") == 1


def test_a_second_signal_ends_at_once(folder: Path) -> None:
    slow = (
        "import refusal_nn.models as m, threading, time\n"
        "def load(*_, **__):\n"
        "    try:\n"
        "        print('loading', file=sys.stderr, flush=True); time.sleep(3600)\n"
        "    finally:\n"
        "        print('ending', file=sys.stderr, flush=True); time.sleep(3600)\n"
        "m.load_model = load\n"
    )
    process = start(folder, "models", "show", "tiny-refuser", before=f"exec({slow!r})")
    assert process.stderr is not None
    assert process.stderr.readline() == "loading\n"
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    returned, _, _ = ended(process)
    assert returned == -signal.SIGTERM


def test_a_dry_run_that_is_ended_leaves_no_process(folder: Path) -> None:
    stores = "stores-dry"
    process = start(folder, *extract(stores), "--backend", "dry-run")
    children = wait_for(lambda: children_of(process.pid), "its process")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    returned, _, err = ended(process)
    assert returned == 143, err
    assert "Traceback" not in err
    wait_for(lambda: not any(alive(child) for child in children), "the children's end", 5)


def children_of(process: int) -> list[str]:
    def parent(stat: Path) -> str:
        try:
            return stat.read_text().rpartition(")")[2].split()[1]
        except OSError:
            return ""

    return [
        stat.parent.name
        for stat in Path("/proc").glob("[0-9]*/stat")
        if parent(stat) == str(process)
    ]


def alive(process: str) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_a_library_user_keeps_their_own_handlers() -> None:
    code = (
        "import signal\n"
        "both = (signal.SIGTERM, signal.SIGINT)\n"
        "before = [signal.getsignal(number) for number in both]\n"
        "import conftest, refusal_nn, refusal_nn.cli, refusal_nn.cli._signals\n"
        "assert [signal.getsignal(number) for number in both] == before\n"
    )
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[2],
        timeout=limit(10),
    )
