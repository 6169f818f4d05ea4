"""A loop in a run directory: its checkpoints while it goes on, its two stages when it has ended.

``<name>.loop`` holds the records of the steps so far and the last state, ``at_<step>``, which is
written aside and renamed: what it says is done is done, and what lies beyond it is written again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xarray as xr
import zarr

from refusal_nn.errors import StoreError
from refusal_nn.store import manifest
from refusal_nn.store._layout import Layout, require_same
from refusal_nn.store._loop import STATE, Loop, Reached
from refusal_nn.store._protocol import STEP, Looped
from refusal_nn.store._reading import BEGIN_AGAIN
from refusal_nn.store._write import (
    array_of,
    create_stage,
    placed,
    read_dataset,
    read_stage,
    storable,
    write_dataset,
    write_stage,
)

_AT = re.compile(r"at_(\d+)")
_UNREADABLE = (ValueError, LookupError, TypeError, RuntimeError)
"""What zarr and its codecs raise over bytes that are not those that were written."""
_CHUNK_BYTES = 1 << 16
"""A chunk of records is written anew with each step in it, so it is small."""


class LoopFolder:
    """The files of one loop.

    Parameters
    ----------
    partial : Path
        Directory of the run.
    loop : Loop
    every : int, optional
        Every how many steps the state is going to be kept.
    """

    def __init__(self, partial: Path, loop: Loop, every: int | None) -> None:
        self.loop = loop
        self.every = every or 1
        self.ended = partial / loop.name
        self.state = partial / f"{loop.name}{STATE}"
        self.folder = partial / f"{loop.name}.loop"

    def open(self) -> bool:
        """Make the folder, or see that it is this loop's; whether the loop has ended.

        Raises
        ------
        StoreError
            If a loop or stage of that name was begun for something else.
        """
        ended = self.ended.exists()
        if not ended and not self.folder.exists():
            loop = self.loop
            size = max(1, loop.records.nbytes // loop.steps)
            lengths = {STEP: max(self.every, min(loop.steps, _CHUNK_BYTES // size))}
            regions = [{STEP: (i, i + 1)} for i in range(loop.steps)]
            layout = Layout(loop.name, lengths, regions, loop.digest)
            create_stage(self.folder, loop.records, layout)
        begun = manifest.read_attrs(self.ended if ended else self.folder)
        require_same("loop", self.loop.name, begun.get("stage_digest"), self.loop.digest)
        return ended

    def last(self) -> Reached:
        """Where to go on.

        Raises
        ------
        StoreError
            If what was kept cannot be read.
        """
        kept = self._kept()
        if not kept:
            return Reached(0, self.loop.first)
        step = max(kept)
        with _sound(f"the state of loop {self.loop.name!r} after step {step - 1} is"):
            if not 0 < step <= self.loop.steps:
                raise ValueError(f"there are {self.loop.steps} steps")
            found = read_dataset(kept[step], load=False).load()
            return Reached(step, self.loop.restored(found), bool(found.attrs["done"]))

    def keep(self, at: Reached, records: xr.Dataset) -> None:
        """Keep where the loop is, and the records of the latest steps."""
        with _sound(f"the records of loop {self.loop.name!r} are", _UNREADABLE):
            running = zarr.open_group(self.folder, mode="r+", use_consolidated=False, zarr_format=3)
        for name, variable in records.data_vars.items():
            axis = variable.dims.index(STEP)
            where = (slice(None),) * axis + (slice(at.step - records.sizes[STEP], at.step),)
            # steps of one chunk are written one by one, so those before are read again; what the
            # disk says of the writing is another matter
            with _sound(f"the records of loop {self.loop.name!r} are", _UNREADABLE):
                array = array_of(running, str(name))
                if array.shape != self.loop.records[name].shape:
                    raise ValueError(f"shape {array.shape}")
                array[where] = storable(variable.values)
        with placed(self.folder / f"at_{at.step}") as draft:
            write_dataset(draft, at.state, {"done": at.done})
        with _sound(f"the ledger of loop {self.loop.name!r} is", _UNREADABLE):
            array_of(running, "written")[: at.step] = True
        for other, path in self._kept().items():
            if other < at.step:
                shutil.rmtree(path)

    def finish(self) -> None:
        """Make the ended loop its two stages; the stage of its own name comes last.

        Raises
        ------
        StoreError
            If what was kept cannot be read.
        """
        at = self.last()
        with _sound(f"the records of loop {self.loop.name!r} are"):
            records = self.loop.whole(read_stage(self.folder, load=False).load(), at.step)
        write_stage(self.state, at.state, self.loop.digest)
        write_stage(self.ended, records, self.loop.digest)

    def result(self) -> Looped:
        """What the ended loop came to."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with _sound(f"what loop {self.loop.name!r} came to is"):
            state, records = (read_stage(p, load=False).load() for p in (self.state, self.ended))
            return Looped(self.loop.restored(state), self.loop.whole(records, records.sizes[STEP]))

    def _kept(self) -> dict[int, Path]:
        found = {_AT.fullmatch(p.name): p for p in self.folder.iterdir()}
        return {int(m[1]): p for m, p in found.items() if m}


@contextmanager
def _sound(
    what: str, errors: tuple[type[Exception], ...] = (OSError, StoreError, *_UNREADABLE)
) -> Iterator[None]:
    """Say of what cannot be read that it is damaged, whatever zarr calls it."""
    try:
        yield
    except errors as e:
        cause = e.__cause__ or e if isinstance(e, StoreError) else e
        reason = " ".join(str(cause).split())
        raise StoreError(f"{what} damaged ({reason}); {BEGIN_AGAIN}.") from e
