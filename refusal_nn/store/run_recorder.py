"""The recorder that keeps stages in a run directory and survives being killed."""

from __future__ import annotations

import errno
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
import zarr

from refusal_nn.errors import StoreError
from refusal_nn.store import _lock, _partial, manifest
from refusal_nn.store import provenance as _provenance
from refusal_nn.store._attrs import plain
from refusal_nn.store._checkpoints import LoopFolder
from refusal_nn.store._commit import commit_run
from refusal_nn.store._disk import writing
from refusal_nn.store._inspect import inspect
from refusal_nn.store._jobs import JOBS, JobLedger, has_jobs, jobs_summary, results_of
from refusal_nn.store._layout import Layout, Region, fit, require_same
from refusal_nn.store._loop import iterate, prepare_loop
from refusal_nn.store._names import check_name, run_name
from refusal_nn.store._protocol import Arrays, Body, Compute, Looped, Progress
from refusal_nn.store._reading import BEGIN_AGAIN, open_tree, reading
from refusal_nn.store._stream import storable_dtype
from refusal_nn.store._write import array_of, create_stage, like, read_stage, storable
from refusal_nn.store.recorder import prepared, report

_STAGE_NAME = re.compile(r"[A-Za-z][\w-]*")


class RunRecorder:
    """Keeps stages in a run directory: killed at any moment, it continues where it was.

    While it runs the directory is ``<name>.zarr.partial`` and holds one group a stage, each with a
    ledger ``written`` that is set after a batch's data are on disk. :meth:`commit` writes the
    result beside them and renames it into place in one step.

    Parameters
    ----------
    path : str or Path
        ``stores/<name>``, with or without ``.zarr``.
    fingerprint : str
        :func:`refusal_nn.store.fingerprint` of the request.
    provenance : mapping
        See :func:`refusal_nn.store.provenance.check`. Of the first attempt; a resumed run keeps it.
    request : mapping
        What was asked, to ask it again; plain data free of this machine's paths, kept in the run as
        ``call.json``.
    progress : callable, optional
        Called as ``progress(stage, done, total)`` before the first batch and after each.

    Attributes
    ----------
    path : Path
        The finished run.
    partial : Path
        The run while it is being made.
    already_complete : bool
        The run is there with this fingerprint: report it, there is nothing to do.
    resumed : bool
        A partial run with this fingerprint was found and is continued.

    Raises
    ------
    StoreError
        If the name is taken by another request, another process is writing it, something else is
        in the way, or the folder cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fingerprint: str,
        provenance: Mapping[str, Any],
        request: Mapping[str, Any],
        progress: Progress | None = None,
    ) -> None:
        check_name(path)
        self.name = run_name(path)
        self.path = Path(path).with_name(f"{self.name}.zarr")
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.fingerprint = fingerprint
        self.progress = progress
        self.already_complete = False
        self.resumed = False
        self._lock = _lock.Lock(self.partial)
        self._started = time.monotonic()
        self._begin(_provenance.check(provenance), plain(dict(request), where="request"))

    def stage(
        self, name: str, template: xr.Dataset, batches: Sequence[Region], compute: Compute
    ) -> xr.Dataset:
        """Run the batches of a stage that are not on disk yet and return the whole stage.

        Parameters and errors are those of :meth:`MemoryRecorder.stage`. An exception of
        ``compute`` passes through; the batches before it are kept.

        Returns
        -------
        xarray.Dataset
            As read from disk: variables up to 32 MiB in memory, larger ones lazy (valid until
            :meth:`commit`, which links them where they are whole).
        """
        self._require_open(name)
        with self._asked():
            template, layout = prepared(name, template, batches)
        folder = self.partial / name
        with self._at_work():
            if not folder.exists():
                with writing(self.path):
                    create_stage(folder, template, layout)
            begun = manifest.read_attrs(folder).get("stage_digest")
            require_same("stage", name, begun, layout.digest)
            self._fill(folder, template, layout, compute)
            with reading(self.name, BEGIN_AGAIN):
                return like(template, read_stage(folder, load=True))

    def loop(
        self,
        name: str,
        state: Arrays,
        steps: int,
        body: Body,
        *,
        records: xr.Dataset | None = None,
        every: int | None = None,
    ) -> Looped:
        """Do steps that each begin with the state the step before left; those kept are not repeated.

        Parameters, result and errors are those of :meth:`MemoryRecorder.loop`. An exception of
        ``body`` passes through; the last state that was kept is where the next attempt goes on.
        """
        self._require_open(name)
        with self._asked():
            loop = prepare_loop(name, state, steps, records, every)
        kept = LoopFolder(self.partial, loop, every)
        with self._at_work():
            with writing(self.path):
                if kept.open():
                    return kept.result()
                begun = kept.last()
            report(self.progress, name, begun.step, steps)
            jobs = JobLedger(self.partial / f"{name}.{JOBS}")
            for at, told in iterate(loop, begun, body, self, jobs, every):
                with writing(self.path):
                    kept.keep(at, told)
                    self._lock.touch()
                report(self.progress, name, at.step, at.step if at.done else steps)
            with writing(self.path):
                kept.finish()
                return kept.result()

    def commit(
        self,
        groups: Mapping[str, xr.Dataset],
        attrs: Mapping[str, Any] | None = None,
        *,
        keep: Iterable[str] = (),
    ) -> xr.DataTree:
        """Write the result groups, hash every file and rename the run into place.

        Parameters
        ----------
        groups : mapping
            Dataset by group; ``"/"`` is the root. Groups below the root that share a dim name with
            it must share its labels.
        attrs : mapping, optional
            Attrs of the root, beside the provenance.
        keep : iterable of str
            Finished stages to add as groups of their own, without a second copy of their data. The
            other stages are scratch and go.

        Returns
        -------
        xarray.DataTree
            The finished run, lazily opened.

        Raises
        ------
        StoreError
            If a variable breaks the registry, groups disagree on a dim, or an attr is private.
        """
        self._require_open()
        kept = tuple(keep)
        with self._at_work():
            progress = manifest.stage_progress(self.partial)
            finished = sorted(s for s, (done, total) in progress.items() if done == total)
            for stage in kept:
                if stage not in finished:
                    raise StoreError(
                        f"cannot keep stage {stage!r}: it is not finished; finished are {finished}."
                    )
            attempts, seconds = _partial.spent(self.partial, time.monotonic() - self._started)
            root = {
                **manifest.read_attrs(self.partial),
                "complete": True,
                "wall_time": round(seconds, 3),
                "attempts": attempts,
            }
            if jobs := jobs_summary(self.partial):
                root["jobs"] = jobs
            with writing(self.path):
                commit_run(self.path, self.partial, groups, attrs or {}, root=root, keep=kept)
        self.close()
        self.already_complete = True
        return self.open()

    def open(self) -> xr.DataTree:
        """The finished run, lazily.

        Raises
        ------
        StoreError
            If it is not complete.
        """
        if not self.already_complete:
            raise StoreError(f"run {self.name!r} is not complete; resume it first.")
        return open_tree(self.path)

    def close(self) -> None:
        """Let another process continue the run. A later :meth:`stage` takes it up again."""
        self._lock.release()

    def abandon(self, *, with_batches: bool = False) -> None:
        """Remove the partial directory of a run that can never be finished, if it holds no batch.

        It stays while a server has jobs of it, or has returned some: what was computed there may
        have cost much, and only the run knows of it.

        Parameters
        ----------
        with_batches : bool
            Also if it holds batches that were computed here.
        """
        if self.already_complete or not self.partial.is_dir() or has_jobs(self.partial):
            return
        if with_batches or not any(
            done for done, _ in manifest.stage_progress(self.partial).values()
        ):
            self.close()
            _partial.discard(self.partial)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self, checked: dict[str, Any], request: dict[str, Any]) -> None:
        if self._finished():
            return
        attrs = {
            **checked,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "complete": False,
            "created": _provenance.now(),
        }
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _partial.sweep(self.partial)
            if self.partial.exists() and not self.partial.is_dir():
                raise FileExistsError(errno.EEXIST, "File exists", str(self.partial))
            if not self.partial.exists():
                self._lock = _partial.create(self.partial, attrs, request) or self._lock
        # asked before the lock: another request must not touch this one's directory
        other = manifest.read_attrs(self.partial).get("fingerprint")
        if other != self.fingerprint:
            raise self._taken(other)
        self.resumed = not self._lock.held
        if self.resumed:  # before anything is written in it or removed from it
            inspect(self.partial)
        with writing(self.path):
            self._acquire()
        self._finished()  # by another process, just now

    def _finished(self) -> bool:
        """Whether the run is there; if so, what is left of its making goes."""
        if not self.path.exists() and not self.path.is_symlink():
            return False
        other = manifest.read_attrs(self.path).get("fingerprint") if self.path.is_dir() else None
        if other is None:
            raise StoreError(
                f"{str(self.path)!r} is in the way and is not a run; move it or choose another "
                "--name."
            )
        if other != self.fingerprint:
            raise self._taken(other)
        self.already_complete = True
        self.close()
        _partial.discard(self.partial)
        return True

    def _taken(self, other: object) -> StoreError:
        return StoreError(
            f"run {self.name!r} exists for another request (fingerprint {str(other)[:8]}, this one "
            f"is {self.fingerprint[:8]}); choose another --name or remove it with "
            f"`refusal-nn runs rm {self.name}`."
        )

    def _acquire(self) -> None:
        if not self._lock.held:
            ended = _partial.last_sign_of_life(self.partial)
            self._lock.acquire()
            self._started = time.monotonic()
            _partial.begin_attempt(self.partial, ended)

    def _fill(self, folder: Path, template: xr.Dataset, layout: Layout, compute: Compute) -> None:
        with reading(self.name, BEGIN_AGAIN):
            group = zarr.open_group(folder, mode="r+", use_consolidated=False, zarr_format=3)
            arrays = {str(n): array_of(group, str(n)) for n in template.data_vars}
            ledger = array_of(group, "written")
            written = np.array(ledger[...])
        _require_as_begun(self.name, layout, template, arrays, written)
        report(self.progress, layout.stage, int(written.sum()), len(layout))
        missing = [int(i) for i in np.flatnonzero(~written)]
        jobs = JobLedger(folder.with_name(f"{folder.name}.{JOBS}"))
        for i, result in results_of(compute, missing, jobs):
            part = fit(layout, template, i, result)
            with writing(self.path):
                for n, array in arrays.items():
                    array[layout.indexer(i, template[n].dims)] = storable(part[n].values)
                written[i] = True
                ledger[...] = written  # after the data: a mark means the batch is on disk
                self._lock.touch()
            report(self.progress, layout.stage, int(written.sum()), len(layout))

    def _require_open(self, stage: str | None = None) -> None:
        if self.already_complete:
            raise StoreError(f"run {self.name!r} is complete; open it instead of writing to it.")
        if stage is not None and not _STAGE_NAME.fullmatch(stage):
            raise StoreError(f"stage name {stage!r} must be letters, digits, '_' and '-'.")

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Leave nothing behind of what cannot be stored, as long as no batch was computed."""
        try:
            yield
        except StoreError:
            self.abandon()
            raise

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Hold the run; an error lets go of it."""
        try:
            with writing(self.path):
                self._acquire()
            yield
        except BaseException:
            self.close()
            raise


def _require_as_begun(
    name: str,
    layout: Layout,
    template: xr.Dataset,
    arrays: Mapping[str, zarr.Array],
    written: np.ndarray,
) -> None:
    """Check that the arrays on disk are those of the stage: a mark in an attr does not make them so.

    Raises
    ------
    StoreError
    """
    odd = "written" if (written.shape, written.dtype) != ((len(layout),), np.dtype(bool)) else None
    for n, array in arrays.items():
        wanted = template[n].variable
        if array.shape != wanted.shape or array.dtype != storable_dtype(wanted.dtype):
            odd = odd or n
    if odd is not None:
        raise StoreError(
            f"run {name!r} cannot go on: variable {odd!r} of its stage {layout.stage!r} is not as the "
            "stage was begun; remove the run and begin again."
        )
