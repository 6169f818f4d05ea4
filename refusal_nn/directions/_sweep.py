"""The three measurements on candidate directions, as passes that many candidates share.

The published form runs three loops over candidates, one pass each over the whole model with logits
at every token. Here rows = (candidate, prompt) share a pass, adding at block *l* starts at block
*l* from the residual stream of the unedited run, and logits are computed at the last token alone.
"""

from __future__ import annotations

from collections.abc import Callable
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
    from refusal_nn.tracing._jobs import Collect

CANDIDATES_PER_UNIT = 16

Ask = Callable[[Work, np.ndarray, np.ndarray, Any], Handle]
"""``ask(work, variants, prompts, plain)`` asks for one pass of some candidates over some prompts, which
returns ``value`` ``[candidate and prompt]``; ``plain`` is the unedited pass of these prompts."""


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
        value = score_capture(self.tokens, "value")

        def ask(work: Work, variants: np.ndarray, some: np.ndarray, plain: Handle) -> Handle:
            layer, rows = int(self.layers[variants[0]]), list(range(len(some))) * len(variants)
            start = Start(layer, plain.held("residual", layer=layer, rows=rows))
            addition = ActivationAddition(self._vectors[variants], layers=[layer])
            return self._ask(work, some, addition, value, start)

        residual = Capture("residual", "resid_pre", keep=True)
        return self._measure("induce", prompts, units, groups, ask, residual)

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
        unedited = Capture("log_probs", "logits", positions=(-1,), reduce="log_probs", keep=True)

        def value(plain: Handle) -> Capture:
            baseline = {"baseline": plain.held("log_probs")}
            return Capture("value", "logits", positions=(-1,), reduce="smoothed_kl", args=baseline)

        return self._ablated(stage, chosen, prompts, 8, value, unedited)

    def bypass(self, chosen: np.ndarray, prompts: np.ndarray) -> xr.DataArray:
        """Refusal score of prompts under ablation of each direction."""
        value = score_capture(self.tokens, "value")
        return self._ablated("bypass", chosen, prompts, 16, lambda _: value)

    def _ablated(
        self,
        stage: str,
        chosen: np.ndarray,
        prompts: np.ndarray,
        least: int,
        value: Callable[[Any], Capture],
        unedited: Capture | None = None,
    ) -> xr.DataArray:
        """What is read under ablation of each direction, of ``least`` prompts a group or more."""

        def ask(work: Work, variants: np.ndarray, some: np.ndarray, plain: Handle | None) -> Handle:
            return self._ask(work, some, DirectionalAblation(self._vectors[variants]), value(plain))

        units = _chunks(chosen, CANDIDATES_PER_UNIT)
        groups = self._by_length(prompts, max(least, self.rows // CANDIDATES_PER_UNIT))
        return self._measure(stage, prompts, units, groups, ask, unedited)

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
        ask: Ask,
        unedited: Capture | None = None,
    ) -> xr.DataArray:
        """One value for each candidate of ``units`` and each prompt, as a stage over candidates.

        Where there is ``unedited``, the plain pass that ``ask`` is given of a group of prompts holds
        that capture.
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

        def batch(i: int, work: Work, plain: list[Handle | None]) -> Collect:
            asked = [
                (some, variants, ask(work, variants, some, held))
                for some, held in zip(groups, plain, strict=True)
                for variants in _chunks(units[i], max(1, self.rows // len(some)))
            ]

            def collect(answers: Answers) -> xr.Dataset:
                values = np.empty((len(units[i]), len(prompts)))
                for some, variants, handle in asked:
                    block = answers[handle]["value"].numpy().reshape(len(variants), len(some))
                    # units and prompts ascend
                    rows, columns = (
                        np.searchsorted(units[i], variants),
                        np.searchsorted(prompts, some),
                    )
                    values[np.ix_(rows, columns)] = block
                return template.isel(batches[i]).assign({variable: (dims, values)})

            return collect

        work = Passes(self.model, batch, shared)
        return self.recorder.stage(name, template, batches, work)[variable]


def _chunks(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[i : i + size] for i in range(0, len(items), size)]
