"""The three measurements on candidate directions, as passes that many candidates share.

The published form runs three loops over candidates, one pass each over the whole model with logits
at every token. Here rows = (candidate, prompt) share a pass, adding at block *l* starts at block
*l* from the residual stream of the unedited run, and logits are computed at the last token alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.contrasts._refusal_tokens import score_capture
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, Intervention
from refusal_nn.runs._batches import prompt_labels
from refusal_nn.tracing import Answers, Batch, Capture, Handle, Passes, Start, Work, pad

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts
    from refusal_nn.store import Recorder

CANDIDATES_PER_UNIT = 16

Asked = Iterator[tuple[np.ndarray, Handle]]
"""The candidates of each pass, and the pass, which returns ``value`` ``[candidate and prompt]``."""


@dataclass(frozen=True)
class Sweep:
    """Candidates and the prompts they are measured on.

    Candidates are numbered layer by layer, so that those that start at one block are neighbours;
    candidates and prompts are given by their numbers.

    Parameters
    ----------
    model : Model
    direction : xarray.DataArray
        ``(layer, position, d_model)``, layers ascending.
    prompts : Prompts
    tokens : list of int
        Refusal tokens.
    rows : int
        Rows (candidate, prompt) a pass.
    recorder : Recorder
    """

    model: Model
    direction: xr.DataArray
    prompts: Prompts
    tokens: list[int]
    rows: int
    recorder: Recorder

    @cached_property
    def layers(self) -> np.ndarray:
        """Layer of each candidate."""
        return np.repeat(self.direction["layer"].values, self.direction.sizes["position"])

    @cached_property
    def _vectors(self) -> np.ndarray:
        return self.direction.values.reshape(-1, self.direction.sizes["d_model"])

    @cached_property
    def _token_rows(self) -> list[list[int]]:
        return self.model.chat.tokens(self.prompts.texts)

    def induce(self, chosen: np.ndarray, prompts: np.ndarray) -> xr.DataArray:
        """Refusal score of prompts with each direction added at its own layer."""
        # all candidates of a layer are chosen or none, so the units are of one size
        units = [chosen[self.layers[chosen] == layer] for layer in np.unique(self.layers[chosen])]
        groups = self._by_length(prompts, max(16, self.rows // self.direction.sizes["position"]))

        def passes(work: Work, unit: np.ndarray, some: np.ndarray, plain: Handle) -> Asked:
            layer, n = int(self.layers[unit[0]]), len(some)
            for variants in _chunks(unit, max(1, self.rows // n)):
                rows = list(range(n)) * len(variants)
                start = Start(layer, plain.held("residual", layer=layer, rows=rows))
                addition = ActivationAddition(self._vectors[variants], layers=[layer])
                yield variants, self._ask(work, some, addition, self._score(), start)

        residual = Capture("residual", "resid_pre", keep=True)
        return self._measure("induce", prompts, units, groups, passes, residual)

    def kl(
        self, chosen: np.ndarray, prompts: np.ndarray, limit: float | None, slack: np.ndarray
    ) -> xr.DataArray:
        """Smoothed KL on prompts under ablation; NaN for the rest of a candidate that is over.

        With a limit, a first quarter of the prompts is measured for all and the rest only for
        candidates that the rest could still bring under it: ``slack`` ``[prompt]`` says how far
        below 0 the KL of each can be.
        """
        if limit is None or len(prompts) < 2:
            return self._kl("kl", chosen, prompts)
        n = max(1, len(prompts) // 4)
        begun = self._kl("kl_begun", chosen, prompts[:n])
        least = begun.sum("prompt").values - slack[prompts[n:]].sum()
        alive = chosen[least <= limit * len(prompts)]
        finished = self._kl("kl", alive, prompts[n:]).reindex(candidate=chosen)
        return xr.concat([begun, finished], dim="prompt", coords="minimal", compat="override")

    def _kl(self, stage: str, chosen: np.ndarray, prompts: np.ndarray) -> xr.DataArray:
        groups = self._by_length(prompts, max(8, self.rows // CANDIDATES_PER_UNIT))
        unedited = Capture("log_probs", "logits", positions=(-1,), reduce="log_probs", keep=True)

        def passes(work: Work, unit: np.ndarray, some: np.ndarray, plain: Handle) -> Asked:
            baseline = {"baseline": plain.held("log_probs")}
            value = Capture("value", "logits", positions=(-1,), reduce="smoothed_kl", args=baseline)
            return self._ablated(work, unit, some, value)

        units = _chunks(chosen, CANDIDATES_PER_UNIT)
        return self._measure(stage, prompts, units, groups, passes, unedited)

    def bypass(self, chosen: np.ndarray, prompts: np.ndarray) -> xr.DataArray:
        """Refusal score of prompts under ablation of each direction."""
        groups = self._by_length(prompts, max(16, self.rows // CANDIDATES_PER_UNIT))

        def passes(work: Work, unit: np.ndarray, some: np.ndarray, _: None) -> Asked:
            return self._ablated(work, unit, some, self._score())

        units = _chunks(chosen, CANDIDATES_PER_UNIT)
        return self._measure("bypass", prompts, units, groups, passes)

    def _score(self) -> Capture:
        return score_capture(self.tokens, "value")

    def _ablated(self, work: Work, unit: np.ndarray, some: np.ndarray, value: Capture) -> Asked:
        for variants in _chunks(unit, max(1, self.rows // len(some))):
            ablation = DirectionalAblation(self._vectors[variants])
            yield variants, self._ask(work, some, ablation, value)

    def _ask(
        self,
        work: Work,
        prompts: np.ndarray,
        intervention: Intervention,
        capture: Capture,
        start: Start | None = None,
    ) -> Handle:
        """One pass over rows = (variant, prompt), a variant being a row of the intervention."""
        edits = list(intervention.edits(self.model.arch))
        n = len(next(iter(edits[0].args.values())))
        pick = tuple(np.repeat(np.arange(n), len(prompts)).tolist())
        return work.forward(
            self._batch(prompts).repeat(n),
            [capture],
            [replace(edit, pick=pick) for edit in edits],
            start=start,
        )

    def _batch(self, prompts: np.ndarray) -> Batch:
        return pad([self._token_rows[p] for p in prompts], self.model.pad_token)

    def _by_length(self, prompts: np.ndarray, size: int) -> list[np.ndarray]:
        """Prompts in groups of similar length, so that little of a pass is padding."""
        lengths = [len(self._token_rows[p]) for p in prompts]
        return _chunks(prompts[np.argsort(lengths, kind="stable")], min(size, self.rows))

    def _measure(
        self,
        name: str,
        prompts: np.ndarray,
        units: list[np.ndarray],
        groups: list[np.ndarray],
        passes: Callable[[Work, np.ndarray, np.ndarray, Any], Asked],
        unedited: Capture | None = None,
    ) -> xr.DataArray:
        """One value for each candidate of ``units`` and each prompt, as a stage over candidates.

        ``passes(work, unit, group, plain)`` asks for the passes of a unit over a group of prompts;
        ``plain`` is the unedited pass of that group, which holds the capture ``unedited``.
        """
        chosen = np.concatenate(units) if units else np.zeros(0, dtype=int)
        dims = ("candidate", "prompt")
        variable = f"{name.removesuffix('_begun')}_per_prompt"
        positions = np.tile(self.direction["position"].values, self.direction.sizes["layer"])
        template = xr.Dataset(
            {variable: (dims, np.full((len(chosen), len(prompts)), np.nan))},
            coords={
                "candidate": chosen,
                "layer": ("candidate", self.layers[chosen]),
                "position": ("candidate", positions[chosen]),
                **prompt_labels(self.prompts[prompts]),
            },
        )
        if not len(chosen):
            return template[variable]  # no candidate is left to measure
        ends = np.cumsum([len(u) for u in units])
        batches = [
            {"candidate": slice(int(end) - len(unit), int(end))}
            for unit, end in zip(units, ends, strict=True)
        ]

        def shared(work: Work) -> list[Handle | None]:
            if unedited is None:
                return [None] * len(groups)
            return [work.forward(self._batch(some), [unedited]) for some in groups]

        def batch(
            i: int, work: Work, plain: list[Handle | None]
        ) -> Callable[[Answers], xr.Dataset]:
            asked = [
                (some, variants, handle)
                for some, held in zip(groups, plain, strict=True)
                for variants, handle in passes(work, units[i], some, held)
            ]

            def collect(answers: Answers) -> xr.Dataset:
                values = np.empty((len(units[i]), len(prompts)))
                for some, variants, handle in asked:
                    block = answers[handle]["value"].numpy().reshape(len(variants), len(some))
                    values[np.ix_(_where(units[i], variants), _where(prompts, some))] = block
                return template.isel(batches[i]).assign({variable: (dims, values)})

            return collect

        work = Passes(self.model, batch, shared)
        return self.recorder.stage(name, template, batches, work)[variable]


def _chunks(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _where(items: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Indices of ``some`` within sorted ``items``."""
    return np.searchsorted(items, some)
