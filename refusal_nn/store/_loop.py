"""Loops: stages of which each step begins with what the step before came to.

A step is a function of its number and the *state* alone. After every step, or every few, the state
and what the steps told of themselves are kept, and a loop that was killed continues with the last
state that is kept whole; so it ends with the numbers it would have had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import xarray as xr

from refusal_nn.errors import StoreError
from refusal_nn.store._attrs import canonical, plain
from refusal_nn.store._jobs import JobLedger
from refusal_nn.store._layout import matched, plan
from refusal_nn.store._protocol import (
    STEP,
    Arrays,
    Body,
    Iterating,
    Looped,
    Next,
    Recorder,
)
from refusal_nn.store._write import as_objects
from refusal_nn.store.variables import annotate

STATE = "_state"
"""What the stage of a loop's last state is called, after the loop's own name."""


def step_rng(seed: int, step: int) -> np.random.Generator:
    """Random numbers of one step of a loop: a function of seed and step, and of nothing before.

    Parameters
    ----------
    seed, step : int
        At least 0.

    Examples
    --------
    >>> from refusal_nn.store import step_rng
    >>> bool(step_rng(0, 7).integers(100) == step_rng(0, 7).integers(100))
    True
    """
    return np.random.default_rng([seed, step])


@dataclass(frozen=True)
class Loop:
    """A loop as it was asked for, checked.

    Attributes
    ----------
    name : str
    first : xarray.Dataset
        The state before the first step.
    steps : int
        At most so many.
    records : xarray.Dataset
        Template over dim ``step``; the labels of the steps alone where nothing is recorded.
    digest : str
        SHA-256 of what is fixed before the first step: names, shapes, dtypes, labels, steps.
    """

    name: str
    first: xr.Dataset
    steps: int
    records: xr.Dataset
    digest: str

    def after(self, step: int, state: Arrays) -> xr.Dataset:
        """The state after a step, in the form of the first one.

        Raises
        ------
        StoreError
            If variables, dims, shape or kind of value differ from the first state's.
        """
        where = f"loop {self.name!r}, state after step {step}"
        if not isinstance(state, xr.Dataset):
            state = _labelled(where, self.first, state, "the first state")
        return self.restored(matched(where, self.first, state, "the first state"))

    def restored(self, values: xr.Dataset) -> xr.Dataset:
        """A state from its values."""
        return _filled(self.first, values)

    def recorded(self, step: int, records: Arrays | None) -> xr.Dataset:
        """What is recorded of a step, with dim ``step`` of length 1.

        Raises
        ------
        StoreError
            If it does not fit the template.
        """
        where = f"loop {self.name!r}, records of step {step}"
        row = self.records.isel({STEP: slice(step, step + 1)})
        if not isinstance(records, xr.Dataset):
            records = _labelled(where, row.isel({STEP: 0}), records or {}, "the template there")
        if STEP not in records.dims:
            records = records.drop_vars(STEP, errors="ignore").expand_dims(STEP)
        return matched(where, row, records, "the template there")

    def whole(self, values: xr.Dataset, steps: int) -> xr.Dataset:
        """The records of the first steps, from values of at least these; strings as objects."""
        first = {STEP: slice(steps)}
        return as_objects(
            _filled(self.records.isel(first), values.isel(first, missing_dims="ignore"))
        )


@dataclass(frozen=True)
class Reached:
    """Where a loop is.

    Attributes
    ----------
    step : int
        The step that is next.
    state : xarray.Dataset
        Before it.
    done : bool
        There is no next one.
    """

    step: int
    state: xr.Dataset
    done: bool = False


def prepare_loop(
    name: str, state: Arrays, steps: int, records: xr.Dataset | None, every: int | None
) -> Loop:
    """Check what a loop is asked to do.

    Raises
    ------
    StoreError
        If a variable breaks the registry, the state is empty, or the records do not lie along
        ``step``.
    """
    if steps < 1 or (every is not None and every < 1):
        raise StoreError(
            f"loop {name!r}: steps ({steps}) and every ({every}) must be 1 at least; pass a number of "
            "steps, and every how many of them the state is kept."
        )
    if isinstance(state, xr.Dataset):
        first = annotate(state)
    else:
        arrays = {n: np.asarray(values) for n, values in state.items()}
        first = xr.Dataset({n: (_own_dims(n, values), values) for n, values in arrays.items()})
    if not first.data_vars:
        raise StoreError(f"loop {name!r} has an empty state; give it what a step changes.")
    first = as_objects(first).copy(deep=True)
    first.attrs = plain(first.attrs, where=f"attrs of the state of loop {name!r}")
    numbers = {STEP: np.arange(steps)}
    if records is None:
        records = xr.Dataset(coords=numbers)
    aside = [str(n) for n, v in records.data_vars.items() if STEP not in v.dims]
    if aside or records.sizes.get(STEP) != steps:
        what = f"variable {aside[0]!r} lacks it" if aside else f"there it is {dict(records.sizes)}"
        raise StoreError(
            f"loop {name!r}: its records must lie along dim {STEP!r} of length {steps}, but {what}."
        )
    if STEP not in records.coords:
        records = records.assign_coords(numbers)
    records = annotate(records)
    records.attrs = plain(records.attrs, where=f"attrs of loop {name!r}")
    held = plan(f"{name}{STATE}", first, [{}])
    told = plan(name, records, [{STEP: slice(i, i + 1)} for i in range(steps)])
    digest = hashlib.sha256(canonical([held.digest, told.digest]).encode()).hexdigest()
    return Loop(name, first, steps, records, digest)


def iterate(
    loop: Loop,
    at: Reached,
    body: Body,
    recorder: Recorder,
    ledger: JobLedger,
    every: int | None,
) -> Iterator[tuple[Reached, xr.Dataset]]:
    """Go on from a point; yield each point that is to be kept, with the records of the way there."""
    many = isinstance(body, Iterating)
    while not at.done:
        step, state, done = at.step, at.state, False
        # every counts from the first step of all, so that a resumed loop keeps at the same steps
        most = loop.steps - step
        if every is not None or not many:
            most = min(most, (every or 1) - step % (every or 1))
        end, parts = step + most, []
        while step < end and not done:
            for told in _steps(body, step, end - step, state, loop, recorder, ledger):
                parts.append(loop.recorded(step, told.records))
                if told.state is not None:
                    state = loop.after(step, told.state)
                done = told.done
                step += 1
            if many:  # a job is kept as soon as it is back
                break
        at = Reached(step, state, done or step == loop.steps)
        yield at, xr.concat(parts, STEP)


def _steps(
    body: Body,
    step: int,
    most: int,
    state: xr.Dataset,
    loop: Loop,
    recorder: Recorder,
    ledger: JobLedger,
) -> list[Next]:
    """The next step, or as many as are done at a time."""
    state = state.copy(deep=True)  # a step may write into what it is given
    if isinstance(body, Iterating):
        several = list(body.advance(step, most, state, ledger))
        if 1 <= len(several) <= most and several[-1].state is not None:
            return several
        raise StoreError(
            f"loop {loop.name!r}: {len(several)} steps were told of where 1 to {most} were asked for, "
            "the last with its state."
        )
    found = body(step, state, Scoped(recorder, f"{loop.name}_{step}"))
    told = found if isinstance(found, Next) else Next(found)
    if told.state is None:
        raise StoreError(f"loop {loop.name!r}: step {step} returned no state.")
    return [told]


class Scoped:
    """The recorder that a step of a loop is given: the names of its stages begin with the step's.

    Parameters
    ----------
    recorder : Recorder
    prefix : str
        ``<loop>_<step>``; a stage ``name`` of it is kept as ``<loop>_<step>_<name>``, one without a
        name as ``<loop>_<step>``.
    """

    def __init__(self, recorder: Recorder, prefix: str) -> None:
        self._recorder = recorder
        self.prefix = prefix

    def stage(self, name: str, *args: Any, **options: Any) -> xr.Dataset:
        """A stage of this step; see :meth:`MemoryRecorder.stage`."""
        return self._recorder.stage(self._named(name), *args, **options)

    def loop(self, name: str, *args: Any, **options: Any) -> Looped:
        """A loop within this step; see :meth:`MemoryRecorder.loop`."""
        return self._recorder.loop(self._named(name), *args, **options)

    def commit(self, *_: Any, **__: Any) -> NoReturn:
        """Refused: a run is finished after its loops.

        Raises
        ------
        StoreError
        """
        raise StoreError(f"step {self.prefix!r} of a loop cannot finish the run; commit after it.")

    def _named(self, name: str) -> str:
        return f"{self.prefix}_{name}" if name else self.prefix


def _filled(template: xr.Dataset, values: xr.Dataset) -> xr.Dataset:
    """A copy of the template that holds the values."""
    return template.assign(
        {n: v.copy(data=np.array(values[n].values)) for n, v in template.data_vars.items()}
    )


def _labelled(
    where: str, template: xr.Dataset, arrays: Mapping[str, Any], meant: str
) -> xr.Dataset:
    found = {}
    for name, given in arrays.items():
        values = np.asarray(given)
        known = template.data_vars.get(name)
        if known is not None and known.shape != values.shape:
            raise StoreError(
                f"{where}: variable {name!r} has shape {values.shape}, {meant} is {known.shape}."
            )
        found[name] = (_own_dims(name, values) if known is None else known.dims, values)
    return xr.Dataset(found)


def _own_dims(name: str, values: np.ndarray) -> tuple[str, ...]:
    return tuple(f"{name}_{axis}" for axis in range(values.ndim))
