"""What an analysis and a recorder say to each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import xarray as xr

from refusal_nn.store._jobs import JobLedger, Streaming
from refusal_nn.store._layout import Region

STEP = "step"

Compute = Callable[[int], xr.Dataset] | Streaming
Progress = Callable[[str, int, int], None]
Arrays = xr.Dataset | Mapping[str, Any]


@dataclass(frozen=True)
class Next:
    """What a step came to.

    Parameters
    ----------
    state : xarray.Dataset or mapping of arrays
        The state after it, of the variables, shapes and kinds of the first one. None is for the
        steps of a job before its last, see :class:`Iterating`.
    records : xarray.Dataset or mapping of arrays, optional
        What the loop's ``records`` keep of this step, without dim ``step`` (or with it, of length 1).
    done : bool
        It was the last step, whatever number was allowed.
    """

    state: Arrays | None
    records: Arrays | None = None
    done: bool = False


@dataclass(frozen=True)
class Looped:
    """A loop that has ended.

    Attributes
    ----------
    state : xarray.Dataset
        After the last step; the stage ``<name>_state``.
    records : xarray.Dataset
        By ``step``, as many as were done; the stage ``<name>``.
    """

    state: xr.Dataset
    records: xr.Dataset

    @property
    def steps(self) -> int:
        """How many steps were done."""
        return int(self.records.sizes[STEP])


@runtime_checkable
class Iterating(Protocol):
    """Steps that are done several at a time."""

    def advance(self, step: int, most: int, state: xr.Dataset, ledger: JobLedger) -> Sequence[Next]:
        """Do from 1 to ``most`` steps, the first of them number ``step``; the last tells its state."""
        ...


Body = Callable[[int, xr.Dataset, "Recorder"], Next | xr.Dataset | Mapping[str, Any]] | Iterating


@runtime_checkable
class Recorder(Protocol):
    """What an analysis needs of a recorder."""

    def stage(
        self, name: str, template: xr.Dataset, batches: Sequence[Region], compute: Compute
    ) -> xr.Dataset:
        """Run the batches of a stage that are not done yet and return the whole stage."""
        ...

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
        """Do the steps of a loop that are not done yet and return its last state and records."""
        ...

    def commit(
        self,
        groups: Mapping[str, xr.Dataset],
        attrs: Mapping[str, Any] | None = None,
        *,
        keep: Iterable[str] = (),
    ) -> xr.DataTree:
        """Finish the run with its result groups."""
        ...
