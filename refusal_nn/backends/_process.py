"""A process where this package cannot be imported: what runs or can be read there can travel.

nnsight's own ``remote="local"`` is not strict: it runs the block with the caller's globals, so a
reference to an uninstalled package passes. Here the job becomes bytes, as for a server, and another
Python process that refuses to import anything of ours executes them and returns what was saved.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import struct
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import nnsight
import torch
from nnsight import ndif
from nnsight.schema.request import RequestModel
from nnsight.tracing.backend import Backend
from nnsight.tracing.util import push

from refusal_nn.errors import BackendError, PreflightError
from refusal_nn.models import Model, quiet

_workers: weakref.WeakKeyDictionary[Model, dict[Any, Worker]] = weakref.WeakKeyDictionary()
_readers: dict[Any, Worker] = {}
"""Processes without weights, which serve every model of one source."""
_starting = threading.Lock()
"""Held while a process is looked for and started: threads that want the same one get one."""


class Worker:
    """A process that executes serialised jobs, started on first use.

    Parameters
    ----------
    model : Model
    weights : bool
        Load the weights; without them the worker only deserialises (a preflight).
    """

    def __init__(self, model: Model, *, weights: bool) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        source = model.source
        if not source:  # wrapped by hand: there is no folder to load from
            self._folder = tempfile.TemporaryDirectory(prefix="refusal-nn-dryrun-")
            source = self._folder.name
            with quiet():
                model.module.save_pretrained(source)  # type: ignore[operator]
                model.tokenizer.save_pretrained(source)
        script = Path(__file__).with_name("_process_worker.py")
        self.lock = threading.Lock()
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(script), source, *_words(model, source, weights)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.close)

    def ask(self, blob: bytes, *, within: float | None = None) -> dict[str, Any]:
        """Send one job; what it saved.

        Parameters
        ----------
        blob : bytes
        within : float, optional
            Seconds after which the process is ended; default: it may take as long as it takes.

        Raises
        ------
        BackendError
            If the process ended or took too long.
        PreflightError
            If the job could not be read or failed there.
        """
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        late = threading.Event()

        def end() -> None:  # what waits at the pipes then sees them end
            late.set()
            self.process.kill()

        clock = threading.Timer(within or 0.0, end)
        clock.daemon = True  # a process that is interrupted here ends all the same
        with self.lock:
            if within is not None:
                clock.start()
            try:
                stdin.write(struct.pack("<Q", len(blob)) + blob)
                stdin.flush()
                header = stdout.read(8)
                reply = stdout.read(struct.unpack("<Q", header)[0]) if len(header) == 8 else b""
            except (BrokenPipeError, ValueError):  # or closed: it had ended before
                reply = b""
            finally:
                clock.cancel()
        if not reply:
            code = self.process.wait()
            if late.is_set():
                raise BackendError(
                    f"the check that a job can be read on a server did not end within {within:g} s; "
                    "pass a longer --deadline."
                )
            raise BackendError(f"the dry-run process ended with exit code {code} during a job.")
        answer: dict[str, Any] = torch.load(io.BytesIO(reply), weights_only=True)
        if "error" in answer:
            raise PreflightError(
                "the job does not run where this package is not installed, so it would fail on a "
                f"server ({str(answer['error']).rstrip('.')}); call nnsight.register(package) for what "
                "it refers to, or pass values instead."
            )
        return answer["saved"]  # type: ignore[no-any-return]

    def close(self) -> None:
        """End the process and remove its files."""
        atexit.unregister(self.close)
        # of a job that it did not read to the end
        with contextlib.suppress(BrokenPipeError), self.process:
            self.process.kill()
        if self._folder is not None:
            self._folder.cleanup()


class DryRun(Backend):  # type: ignore[misc]
    """nnsight backend that runs a trace in a process without this package.

    Use it for a trace of your own: ``model.nnsight.trace(text, backend=DryRun(model))``.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, tracer: Any) -> None:
        """Serialise the traced block, run it in the worker, bring back what it saved."""
        blob = serialise(tracer)
        push(tracer.info.frame, worker_of(self.model, weights=True).ask(blob))


class Preflight(Backend):  # type: ignore[misc]
    """nnsight backend that only checks that a trace can be read where this package is missing.

    Nothing runs and no weights are loaded; a trace that would fail on a server for what it refers
    to raises :class:`~refusal_nn.errors.PreflightError` here, before anything is sent.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, tracer: Any) -> None:
        """Serialise and deserialise the block."""
        self.check(serialise(tracer))

    def check(self, blob: bytes) -> None:
        """Deserialise a block."""
        worker_of(self.model, weights=False).ask(blob, within=self.model.backend.deadline)


def _words(model: Model, source: str, weights: bool) -> tuple[str, ...]:
    """How a worker is to load a model from its source."""
    return (
        str(model.dtype).removeprefix("torch."),
        str(model.nnsight.attn_implementation),
        "weights" if weights else "meta",
        model.revision or "" if not Path(source).is_dir() else "",
        "trusted" if model.nnsight.kwargs.get("trust_remote_code") else "",
    )


def worker_of(model: Model, *, weights: bool) -> Worker:
    """The process of a model, started on first use; with its weights it ends with the model."""
    shared = not weights and bool(model.source)
    key = model.source, *_words(model, model.source, weights)
    with _starting:
        workers = _readers if shared else _workers.setdefault(model, {})
        found = workers.get(key)
        if found is not None and found.process.poll() is None:
            return found
        if found is not None:
            with found.lock:  # who reads the last answer of it reads to the end
                found.close()
        workers[key] = Worker(model, weights=weights)
        if not shared:
            weakref.finalize(model, workers[key].close)
        return workers[key]


def serialise(tracer: Any) -> bytes:
    """The bytes a server would receive for a trace.

    Raises
    ------
    PreflightError
        If something in the block cannot be serialised.
    """
    nnsight.register("refusal_nn")  # ship our functions by value: servers don't have this package
    ndif.pull_env()
    try:
        return bytes(RequestModel.serialize(tracer, False))
    except Exception as error:
        raise PreflightError(
            f"the job cannot be serialised ({type(error).__name__}: {error}); keep locks, open "
            "files and loaded models out of what the trace refers to."
        ) from error
