"""Interventions with another vector for each prompt, cut to the prompts of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from refusal_nn.interventions import Intervention


def of_rows(interventions: Iterable[Intervention], part: slice, n: int) -> list[Intervention]:
    """The interventions for a batch of a set of ``n`` prompts.

    Parameters
    ----------
    interventions : iterable of Intervention
        For the whole set. An array with a row axis has one row a prompt.
    part : slice
        The prompts of the batch.
    n : int
        Prompts of the set.

    Raises
    ------
    RequestError
        If an array has another number of rows than there are prompts.
    """
    return [_cut(intervention, part, n) for intervention in interventions]


def _cut(intervention: Intervention, part: slice, n: int) -> Intervention:
    changes = {}
    for name in intervention._row_arrays:
        array = getattr(intervention, name)
        if array.ndim > 1:
            if len(array) != n:
                raise RequestError(
                    f"{type(intervention).__name__}: {name} has {len(array)} rows for {n} prompts; "
                    "give one vector, or one a prompt."
                )
            changes[name] = array[part]
    return replace(intervention, **changes) if changes else intervention
