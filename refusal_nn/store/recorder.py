"""Recorders: where the stages of an analysis are kept while it runs.

An analysis cuts its work into stages and each stage into batches with known regions. Whether the
results stay in memory or go to a run that survives a crash is the recorder's business, not the
analysis's: :class:`MemoryRecorder` and :class:`refusal_nn.store.RunRecorder` have the same methods
and make the same checks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.errors import StoreError
from refusal_nn.store._attrs import plain
from refusal_nn.store._commit import as_tree, checked_groups
from refusal_nn.store._jobs import JobLedger, results_of
from refusal_nn.store._layout import Layout, Region, fit, plan, require_same
from refusal_nn.store._loop import STATE, Reached, iterate, prepare_loop
from refusal_nn.store._protocol import STEP, Arrays, Body, Compute, Looped, Progress
from refusal_nn.store._write import as_objects
from refusal_nn.store.variables import annotate


class MemoryRecorder:
    """Keeps stages in memory: for library calls and small models.

    Parameters
    ----------
    progress : callable, optional
        Called as ``progress(stage, done, total)`` before the first batch and after each.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> from refusal_nn.store import MemoryRecorder
    >>> template = xr.Dataset(
    ...     {"bypass": ("layer", np.full(3, np.nan))}, coords={"layer": [0, 1, 2]}
    ... )
    >>> batches = [{"layer": slice(0, 2)}, {"layer": slice(2, 3)}]
    >>> done = MemoryRecorder().stage(
    ...     "scores", template, batches, lambda i: template.isel(batches[i]).fillna(float(i))
    ... )
    >>> done["bypass"].values.tolist()
    [0.0, 0.0, 1.0]
    """

    def __init__(self, *, progress: Progress | None = None) -> None:
        self.progress = progress
        self._stages: dict[str, tuple[str, xr.Dataset]] = {}

    def stage(
        self, name: str, template: xr.Dataset, batches: Sequence[Region], compute: Compute
    ) -> xr.Dataset:
        """Run the batches of a stage and return the whole stage.

        Parameters
        ----------
        name : str
            Calling a stage again with the same template returns the first result.
        template : xarray.Dataset
            All coords, and all data variables at full shape; their values do not matter.
        batches : sequence of dict
            Region of each batch: ``{dim: slice}``, on a regular grid, only the last one shorter.
        compute : callable or Streaming
            ``compute(i)`` returns the template's variables for region ``batches[i]``; an object
            with ``stream`` does several batches at a time.

        Returns
        -------
        xarray.Dataset
            The template's variables, filled and annotated.

        Raises
        ------
        StoreError
            If the template breaks the registry, the batches do not tile it, or a result does not
            fit its region.
        """
        template, layout = prepared(name, template, batches)
        if name in self._stages:
            digest, known = self._stages[name]
            require_same("stage", name, digest, layout.digest)
            return known.copy(deep=True)
        filled = {}
        if layout.regions:
            for n, v in template.data_vars.items():
                kind = object if v.dtype.kind in "OUT" else v.dtype
                filled[n] = v.copy(data=np.empty(v.shape, kind))
        report(self.progress, name, 0, len(layout))
        found = results_of(compute, range(len(layout)), JobLedger())
        for done, (i, result) in enumerate(found, start=1):
            part = fit(layout, template, i, result)
            for n, v in filled.items():
                v.values[layout.indexer(i, v.dims)] = part[n].values
            report(self.progress, name, done, len(layout))
        finished = as_objects(template.assign(filled))
        self._stages[name] = (layout.digest, finished)
        return finished.copy(deep=True)

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
        """Do steps that each begin with the state the step before left.

        Parameters
        ----------
        name : str
            Calling a loop again with the same arguments returns the first result.
        state : xarray.Dataset or mapping of arrays
            Before the first step. A Dataset is of declared variables; a mapping is scratch of any
            names, each array with dims of its own. Variables, shapes and dtypes stay as they are.
        steps : int
            At most so many; a step that is ``done`` ends the loop earlier.
        body : callable or Iterating
            ``body(step, state, recorder)`` returns the next state, or a :class:`Next` with the
            records of the step and whether it was the last. Its stages are those of the recorder it
            is given, where a stage ``x`` of step 3 is called ``<name>_3_x``. It may depend on step
            and state alone (:func:`step_rng` for random numbers): what else it remembers is lost
            when the process dies. An object with ``advance`` does several steps at a time.
        records : xarray.Dataset, optional
            What is kept of each step: a template with dim ``step`` at length `steps`.
        every : int, optional
            Keep the state after every so many steps; default: each, or each job of an ``advance``.

        Returns
        -------
        Looped
            The last state, and the records of the steps that were done. Stages ``<name>_state`` and
            ``<name>`` of the same can be kept at commit.

        Raises
        ------
        StoreError
            If state or records break the registry or change their form, or a loop of that name was
            asked for differently.

        Examples
        --------
        >>> import numpy as np
        >>> from refusal_nn.store import MemoryRecorder, Next
        >>> def halve(step, state, recorder):
        ...     x = state["x"].values / 2
        ...     return Next({"x": x}, done=bool(x.max() < 0.3))
        >>> found = MemoryRecorder().loop("halve", {"x": np.array([1.0, 2.0])}, 10, halve)
        >>> found.steps, found.state["x"].values.tolist()
        (3, [0.125, 0.25])
        """
        loop = prepare_loop(name, state, steps, records, every)
        if name not in self._stages:
            parts, at = [], Reached(0, loop.first)
            report(self.progress, name, 0, steps)
            for at, told in iterate(loop, at, body, self, JobLedger(), every):  # noqa: B020
                parts.append(told)
                report(self.progress, name, at.step, at.step if at.done else steps)
            told = loop.whole(xr.concat(parts, STEP), at.step)
            self._stages |= {f"{name}{STATE}": (loop.digest, at.state), name: (loop.digest, told)}
        digest, told = self._stages[name]
        require_same("loop", name, digest, loop.digest)
        return Looped(self._stages[f"{name}{STATE}"][1].copy(deep=True), told.copy(deep=True))

    def commit(
        self,
        groups: Mapping[str, xr.Dataset],
        attrs: Mapping[str, Any] | None = None,
        *,
        keep: Iterable[str] = (),
    ) -> xr.DataTree:
        """The result groups as one tree, checked as a run's would be.

        Parameters
        ----------
        groups : mapping
            Dataset by group; ``"/"`` is the root. Groups below the root that share a dim name with
            it must share its labels.
        attrs : mapping, optional
            Attrs of the root.
        keep : iterable of str
            Stages to add as groups of their own.

        Raises
        ------
        StoreError
            If a variable breaks the registry or groups disagree on a dim.
        """
        kept = {}
        for name in keep:
            if name not in self._stages:
                raise StoreError(f"cannot keep stage {name!r}; stages are {sorted(self._stages)}.")
            kept[name] = self._stages[name][1]
        return as_tree(checked_groups({**groups, **kept}, attrs or {}))


def prepared(
    name: str, template: xr.Dataset, batches: Sequence[Region]
) -> tuple[xr.Dataset, Layout]:
    """A stage's template, checked and annotated, and how its batches cut it."""
    template = annotate(template)
    template.attrs = plain(template.attrs, where=f"attrs of stage {name!r}")
    return template, plan(name, template, batches)


def report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    """Tell whoever asked how far a stage is."""
    if progress is not None:
        progress(stage, done, total)
