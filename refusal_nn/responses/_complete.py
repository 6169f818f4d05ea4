"""Completions of prompts under named conditions: the one stage that makes text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn import judges
from refusal_nn.responses._coherence import REFERENCE_REQUEST, ask_nll, completion_nll
from refusal_nn.runs._batches import batches_of, grid_of
from refusal_nn.tracing import Answers, Handle, Passes, Work, completions

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.store import Recorder

DIMS = ("intervention", "prompt")

Ask = Callable[[Work, str, slice], Handle]
"""``ask(work, condition, prompts)``: asks for some prompts under a condition; a row a prompt."""


@dataclass(frozen=True)
class Grid:
    """Every prompt under every condition, in batches of prompts under one condition.

    Parameters
    ----------
    conditions : sequence of str
    labels : mapping
        Coordinates over dim ``prompt``.
    n : int
        Prompts.
    batch_size : int
        Prompts a pass.
    """

    conditions: Sequence[str]
    labels: Mapping[str, Any]
    n: int
    batch_size: int

    @cached_property
    def batches(self) -> list[dict[str, slice]]:
        """Regions over conditions and prompts."""
        return grid_of(
            batches_of(len(self.conditions), 1, "intervention"),
            batches_of(self.n, self.batch_size, "prompt"),
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Conditions, prompts."""
        return len(self.conditions), self.n

    def of(self, i: int) -> tuple[str, slice]:
        """The condition of a batch and its prompts."""
        region = self.batches[i]
        return self.conditions[region["intervention"].start], region["prompt"]

    def template(self, variables: Mapping[str, Any]) -> xr.Dataset:
        """A stage's template over all of it."""
        names = np.array(self.conditions, dtype=object)
        return xr.Dataset(variables, coords={"intervention": names, **self.labels})


def complete(
    model: Model,
    grid: Grid,
    ask: Ask,
    *,
    max_new_tokens: int,
    recorder: Recorder,
    score: Ask | None = None,
    reference_request: str = REFERENCE_REQUEST,
    stages: tuple[str, str] = ("completions", "nll"),
) -> xr.Dataset:
    """Greedy completions of every prompt under every condition, and what judging them needs.

    Parameters
    ----------
    model : Model
    grid : Grid
    ask : callable
        Asks for the completions of some prompts under a condition.
    max_new_tokens : int
        Most tokens a completion has.
    recorder : Recorder
    score : callable, optional
        Asks, under the same conditions, for a pass that returns ``score`` ``[row]``: the refusal
        score of each prompt.
    reference_request : str
        The harmless request that completions are scored after.
    stages : (str, str)
        Names of the stages of completions and of their NLL.

    Returns
    -------
    xarray.Dataset
        Over ``(intervention, prompt)``: ``completion``, ``n_tokens``, ``repetition`` (share, 0 to
        1), ``nll`` (nats a token, NaN below six tokens) and, with ``score``, ``refusal_score``
        (nats).
    """
    template = grid.template(
        {
            "completion_tokens": (
                (*DIMS, "token"),
                np.full((*grid.shape, max_new_tokens), -1, np.int32),
            ),
            "n_tokens": (DIMS, np.zeros(grid.shape, dtype=np.int64)),
        }
    )
    if score is not None:
        template["refusal_score"] = (DIMS, np.full(grid.shape, np.nan))

    def batch(i: int, work: Work) -> Callable[[Answers], xr.Dataset]:
        said = ask(work, *grid.of(i))
        scored = None if score is None else score(work, *grid.of(i))

        def collect(answers: Answers) -> xr.Dataset:
            new = completions(model, answers[said]["ids"])
            out = template.isel(grid.batches[i]).copy(deep=True)
            out["n_tokens"][0] = [len(c) for c in new]
            for row, completion in enumerate(new):
                out["completion_tokens"][0, row, : len(completion)] = completion
            if scored is not None:
                out["refusal_score"][0] = answers[scored]["score"].numpy()
            return out

        return collect

    found = recorder.stage(stages[0], template, grid.batches, Passes(model, batch))
    tokens = found["completion_tokens"].values.reshape(-1, max_new_tokens)
    lengths = found["n_tokens"].values.ravel()
    new = [row[:n].tolist() for row, n in zip(tokens, lengths, strict=True)]
    texts = np.array([model.decode(c) for c in new], dtype=object)
    return found.drop_vars("completion_tokens").assign(
        completion=(DIMS, texts.reshape(grid.shape)),
        repetition=(DIMS, judges.repetition(new).reshape(grid.shape)),
        nll=_nll(model, grid, new, reference_request, recorder, stages[1]),
    )


def _nll(
    model: Model,
    grid: Grid,
    new: Sequence[Sequence[int]],
    reference_request: str,
    recorder: Recorder,
    stage: str,
) -> xr.DataArray:
    """Mean NLL of every completion; ``new`` by condition, then prompt."""
    (reference,) = model.chat.tokens([reference_request])
    template = grid.template({"nll": (DIMS, np.full(grid.shape, np.nan))})

    def batch(i: int, work: Work) -> Callable[[Answers], xr.Dataset]:
        region = grid.batches[i]
        first, part = region["intervention"].start * grid.n, region["prompt"]
        here = new[first + part.start : first + part.stop]
        asked = ask_nll(work, reference, here)

        def collect(answers: Answers) -> xr.Dataset:
            values = completion_nll(here, answers[asked]["log_prob"] if asked else None)
            return template.isel(region).assign(nll=(DIMS, values[None]))

        return collect

    return recorder.stage(stage, template, grid.batches, Passes(model, batch))["nll"]
