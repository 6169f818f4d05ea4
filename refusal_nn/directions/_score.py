"""Scores of every candidate direction: bypass, induce, KL, as one batched sweep.

The published form runs three loops over candidates, one pass each over the whole model with logits
at every token. Here rows = (candidate, prompt) share a pass, adding at block *l* starts at block
*l* from the residual stream of the unedited run, logits are computed at the last token alone, and a
candidate that one criterion has ruled out is not measured on the next.

References
----------
Arditi et al. 2024, section 2.3 and appendix C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.contrasts._refusal_tokens import parse_tokens
from refusal_nn.directions._extract import refusal_scores
from refusal_nn.directions._score_table import whole_labels
from refusal_nn.directions._select import checked_thresholds
from refusal_nn.errors import RequestError, WorkError
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, Intervention
from refusal_nn.runs._batches import prompt_labels, rows_asked
from refusal_nn.runs._used import check_new
from refusal_nn.store import MemoryRecorder, Recorder
from refusal_nn.tracing import (
    Batch,
    Capture,
    ListedPasses,
    Ref,
    Request,
    Results,
    Start,
    forward_request,
    pad,
)

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts

CANDIDATES_PER_UNIT = 16

Pass = tuple[np.ndarray, Callable[[], Request]]
"""The variants of a pass, and what makes its request."""


def score(
    model: Model,
    candidates: xr.Dataset,
    prompts: Prompts,
    *,
    kl_max: float = 0.1,
    induce_min: float = 0.0,
    layer_fraction: float = 0.8,
    exhaustive: bool = False,
    refusal_tokens: Sequence[int | str] | str | None = None,
    screen: bool = True,
    batch_size: int | None = None,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """Bypass, induce and KL of each candidate.

    *Bypass*: mean refusal score of harmful prompts under directional ablation (lower is better).
    *Induce*: mean refusal score of harmless prompts under activation addition at the candidate's
    layer (higher is better). *KL*: mean divergence of the ablated from the unedited next-token
    distribution on harmless prompts (lower is better).

    Parameters
    ----------
    model : Model
    candidates : xarray.Dataset
        From :func:`extract`: ``direction(position, layer, d_model)``.
    prompts : Prompts
        Selection prompts of both classes (``prompts.val``), disjoint from the discovery prompts.
    kl_max, induce_min, layer_fraction : float
        The published thresholds; a candidate they rule out is not measured further.
    exhaustive : bool
        Measure everything for every candidate.
    refusal_tokens : sequence, optional
        Default: those the candidates were extracted with.
    screen : bool
        Keep only harmful prompts with refusal score above 0 and harmless ones below 0.
    batch_size : int, optional
        Rows (candidate, prompt) a pass.
    recorder : Recorder, optional

    Returns
    -------
    xarray.Dataset
        ``bypass``, ``induce`` (nats, log-odds), ``kl`` (nats) ``(position, layer)``, NaN where not
        measured; ``bypass_per_prompt``, ``induce_per_prompt``, ``kl_per_prompt``
        ``(position, layer, prompt)``; ``dropped_by`` ``(position, layer)``: the criterion that
        ruled a candidate out, or ``""``; ``direction``; ``text``, ``refusal_score`` and ``kept``
        ``(prompt)``. Layers ascend, whatever their order in the candidates.

    Raises
    ------
    RequestError
        If the candidates do not fit the model or lack labels, a threshold is no number, or a class
        has no prompts.
    PromptError
        If the selection prompts share a prompt or a family with the discovery prompts.
    WorkError
        If screening leaves a class without prompts.
    """
    _check_candidates(model, candidates)
    checked_thresholds(kl_max, induce_min, layer_fraction)
    check_new(prompts, candidates, role="discovery")
    rec = recorder if recorder is not None else MemoryRecorder()
    tokens = parse_tokens(model, refusal_tokens)
    if tokens is None:
        if "refusal_tokens" not in candidates.attrs:
            raise RequestError("the candidates name no refusal tokens; pass refusal_tokens.")
        tokens = [int(t) for t in candidates.attrs["refusal_tokens"]]
    rows = rows_asked(model, batch_size)
    base = refusal_scores(
        model, prompts, tokens, batch_size=rows, recorder=rec, stage="baseline", slack=True
    )
    kept = _screened(model, base, screen)
    slack = base["kl_slack"].values
    sweep = _Sweep(model, candidates, prompts, kept, slack, tokens, rows, rec)

    n_layers = int(candidates.attrs.get("n_layers", model.n_layers))
    layers = sweep.layers
    dropped = np.full(len(layers), "", dtype=object)
    dropped[layers >= int(layer_fraction * n_layers)] = "late layer"
    everything = np.arange(len(layers))
    alive = everything if exhaustive else np.flatnonzero(dropped == "")

    induce = sweep.induce(alive)
    mean = induce.mean("prompt").values
    out = alive[(mean < induce_min) | np.isnan(mean)]
    dropped[out[dropped[out] == ""]] = "induce"
    if not exhaustive:
        alive = np.flatnonzero(dropped == "")

    kl = sweep.kl(alive, None if exhaustive else kl_max)
    mean = kl.mean("prompt", skipna=False).values
    out = alive[~(mean <= kl_max)]
    dropped[out[dropped[out] == ""]] = "kl"
    if not exhaustive:
        alive = np.flatnonzero(dropped == "")

    bypass = sweep.bypass(alive)
    return sweep.table(
        base, kept, {"induce": induce, "kl": kl, "bypass": bypass}, dropped
    ).assign_attrs(
        **model.identity(),
        **prompts.to_dataset().attrs,
        n_layers=n_layers,
        refusal_tokens=tokens,
        kl_max=kl_max,
        induce_min=induce_min,
        layer_fraction=layer_fraction,
        exhaustive=exhaustive,
        screened=bool(screen),
    )


class _Sweep:
    """The candidates and selection prompts of one sweep, and the three measurements on them."""

    def __init__(
        self,
        model: Model,
        candidates: xr.Dataset,
        prompts: Prompts,
        kept: np.ndarray,
        slack: np.ndarray,
        tokens: list[int],
        rows: int,
        recorder: Recorder,
    ) -> None:
        self.model = model
        self.recorder = recorder
        self.rows = rows
        self.tokens = tokens
        self.prompts = prompts
        harm = prompts.to_dataset()["harm"].values
        self.harmful = np.flatnonzero(kept & (harm == "harmful"))
        self.harmless = np.flatnonzero(kept & (harm == "harmless"))
        self.token_rows = model.chat.tokens(prompts.texts)
        # layer by layer, so that the candidates that start at one block are neighbours
        flat = candidates["direction"].transpose("layer", "position", "d_model").sortby("layer")
        self.grid = flat.isel(d_model=0, drop=True)
        self.directions = flat.values.reshape(-1, flat.sizes["d_model"])
        self.layers = np.repeat(flat["layer"].values, flat.sizes["position"])
        self.positions = np.tile(flat["position"].values, flat.sizes["layer"])
        self.per_layer = flat.sizes["position"]
        self.direction = flat
        self.slack = slack

    def induce(self, chosen: np.ndarray) -> xr.DataArray:
        """Refusal score of harmless prompts with each direction added at its own layer."""
        # all candidates of a layer are chosen or none, so the units are of one size
        units = [chosen[self.layers[chosen] == layer] for layer in np.unique(self.layers[chosen])]
        groups = self._by_length(self.harmless, max(16, self.rows // self.per_layer))
        residual = Capture("residual", "resid_pre", keep=True)

        def passes(unit: np.ndarray, group: int) -> Iterator[Pass]:
            layer, n = int(self.layers[unit[0]]), len(groups[group])
            for variants in _chunks(unit, max(1, self.rows // n)):
                rows = list(range(n)) * len(variants)
                start = Start(layer, Ref(group, "residual", shared=True, layer=layer, rows=rows))
                addition = ActivationAddition(self.directions[variants], layers=[layer])
                yield (
                    variants,
                    partial(self._request, groups[group], addition, self._score(), start),
                )

        return self._measure(
            "induce", self.harmless, units, groups, passes, lambda: self._unedited(groups, residual)
        )

    def kl(self, chosen: np.ndarray, limit: float | None) -> xr.DataArray:
        """KL on harmless prompts under ablation; NaN for the rest of a candidate that is over.

        With a limit, a first quarter of the prompts is measured for all and the rest only for
        candidates that the rest could still bring under it.
        """
        if limit is None or len(self.harmless) < 2:
            return self._kl("kl", chosen, self.harmless)
        first = self.harmless[: max(1, len(self.harmless) // 4)]
        rest = self.harmless[len(first) :]
        begun = self._kl("kl_begun", chosen, first)
        least = begun.sum("prompt").values - self.slack[rest].sum()
        alive = chosen[least <= limit * len(self.harmless)]
        finished = self._kl("kl", alive, rest).reindex(candidate=chosen)
        return xr.concat([begun, finished], dim="prompt", coords="minimal", compat="override")

    def _kl(self, stage: str, chosen: np.ndarray, prompts: np.ndarray) -> xr.DataArray:
        groups = self._by_length(prompts, max(8, self.rows // CANDIDATES_PER_UNIT))
        unedited = Capture("log_probs", "logits", positions=(-1,), reduce="log_probs", keep=True)

        def passes(unit: np.ndarray, group: int) -> Iterator[Pass]:
            baseline = {"baseline": Ref(group, "log_probs", shared=True)}
            capture = Capture("value", "logits", positions=(-1,), reduce="kl", args=baseline)
            return self._ablated(unit, groups[group], capture)

        units = _chunks(chosen, CANDIDATES_PER_UNIT)
        return self._measure(
            stage, prompts, units, groups, passes, lambda: self._unedited(groups, unedited)
        )

    def bypass(self, chosen: np.ndarray) -> xr.DataArray:
        """Refusal score of harmful prompts under ablation of each direction."""
        groups = self._by_length(self.harmful, max(16, self.rows // CANDIDATES_PER_UNIT))

        def passes(unit: np.ndarray, group: int) -> Iterator[Pass]:
            return self._ablated(unit, groups[group], self._score())

        units = _chunks(chosen, CANDIDATES_PER_UNIT)
        return self._measure("bypass", self.harmful, units, groups, passes)

    def table(
        self,
        base: xr.Dataset,
        kept: np.ndarray,
        measured: dict[str, xr.DataArray],
        dropped: np.ndarray,
    ) -> xr.Dataset:
        """The measurements over (position, layer), means and per prompt."""
        shape = (self.grid.sizes["layer"], self.per_layer)
        dims = ("layer", "position")
        data: dict[str, Any] = {}
        for name, found in measured.items():
            values = np.full((len(self.layers), len(self.prompts)), np.nan)
            rows = found["candidate"].values
            columns = self.harmful if name == "bypass" else self.harmless
            values[np.ix_(rows, columns)] = found.values
            mean = np.full(len(self.layers), np.nan)
            mean[rows] = found.values.mean(axis=1)
            data[name] = (dims, mean.reshape(shape))
            data[f"{name}_per_prompt"] = ((*dims, "prompt"), values.reshape(*shape, -1))
        data["dropped_by"] = (dims, dropped.reshape(shape))
        data["refusal_score"] = base["refusal_score"]
        data["kept"] = ("prompt", kept)
        data["text"] = self.prompts.to_dataset()["text"]
        coords = {
            "position": self.grid["position"].values,
            "layer": self.grid["layer"].values,
            **prompt_labels(self.prompts),
        }
        out = xr.Dataset(data, coords=coords).transpose("position", "layer", ...)
        return out.assign(direction=self.direction.transpose("position", "layer", "d_model"))

    def _score(self) -> Capture:
        return Capture(
            "value",
            "logits",
            positions=(-1,),
            reduce="refusal_score",
            args={"tokens": self.tokens},
        )

    def _ablated(self, unit: np.ndarray, prompts: np.ndarray, capture: Capture) -> Iterator[Pass]:
        for variants in _chunks(unit, max(1, self.rows // len(prompts))):
            ablation = DirectionalAblation(self.directions[variants])
            yield variants, partial(self._request, prompts, ablation, capture)

    def _request(
        self,
        prompts: np.ndarray,
        intervention: Intervention,
        capture: Capture,
        start: Start | None = None,
    ) -> Request:
        """One pass over rows = (variant, prompt), a variant being a row of the intervention."""
        edits = list(intervention.edits(self.model.arch))
        n = len(next(iter(edits[0].args.values())))
        pick = tuple(np.repeat(np.arange(n), len(prompts)).tolist())
        return forward_request(
            self.model,
            self._batch(prompts).repeat(n),
            [capture],
            [replace(edit, pick=pick) for edit in edits],
            start=start,
        )

    def _unedited(self, groups: list[np.ndarray], capture: Capture) -> list[Request]:
        return [forward_request(self.model, self._batch(some), [capture]) for some in groups]

    def _batch(self, prompts: np.ndarray) -> Batch:
        return pad([self.token_rows[p] for p in prompts], self.model.pad_token)

    def _by_length(self, prompts: np.ndarray, size: int) -> list[np.ndarray]:
        """Prompts in groups of similar length, so that little of a pass is padding."""
        lengths = [len(self.token_rows[p]) for p in prompts]
        return _chunks(prompts[np.argsort(lengths, kind="stable")], min(size, self.rows))

    def _measure(
        self,
        name: str,
        prompts: np.ndarray,
        units: list[np.ndarray],
        groups: list[np.ndarray],
        passes: Callable[[np.ndarray, int], Iterator[Pass]],
        shared: Callable[[], Sequence[Request]] | None = None,
    ) -> xr.DataArray:
        """One value for each candidate of ``units`` and each prompt, as a stage over candidates.

        ``passes(unit, group)`` yields the variants of a pass over a group of prompts, and the pass.
        """
        chosen = np.concatenate(units) if units else np.zeros(0, dtype=int)
        dims = ("candidate", "prompt")
        variable = f"{name.removesuffix('_begun')}_per_prompt"
        template = xr.Dataset(
            {variable: (dims, np.full((len(chosen), len(prompts)), np.nan))},
            coords={
                "candidate": chosen,
                "layer": ("candidate", self.layers[chosen]),
                "position": ("candidate", self.positions[chosen]),
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

        def asked(i: int) -> Iterator[tuple[np.ndarray, np.ndarray, Callable[[], Request]]]:
            for group, some in enumerate(groups):
                for variants, make in passes(units[i], group):
                    yield variants, some, make

        def requests(i: int) -> list[Request]:
            return [make() for _, _, make in asked(i)]

        def collect(i: int, results: Results) -> xr.Dataset:
            values = np.empty((len(units[i]), len(prompts)))
            for (variants, some, _), out in zip(asked(i), results, strict=True):
                block = out["value"].numpy().reshape(len(variants), len(some))
                values[np.ix_(_where(units[i], variants), _where(prompts, some))] = block
            return template.isel(batches[i]).assign({variable: (dims, values)})

        work = ListedPasses(self.model, requests, collect, shared)
        return self.recorder.stage(name, template, batches, work)[variable]


def _check_candidates(model: Model, candidates: xr.Dataset) -> None:
    if "direction" not in candidates:
        held = ", ".join(map(str, candidates))
        raise RequestError(
            f"the candidates hold no variable 'direction' (they hold {held}); give the result of "
            "direction extract."
        )
    for dim in ("position", "layer", "d_model"):
        if dim not in candidates["direction"].dims:
            raise RequestError(
                f"the candidates' direction has no dim {dim!r} (it has "
                f"{', '.join(map(str, candidates['direction'].dims))}); give the result of direction "
                "extract, or expand_dims."
            )
    for dim in ("position", "layer"):
        whole_labels(candidates, dim, "the candidates")
    width = candidates.sizes.get("d_model")
    if width != model.d_model or int(candidates["layer"].max()) >= model.n_layers:
        raise RequestError(
            f"the candidates (d_model {width}, layers up to {int(candidates['layer'].max())}) are "
            f"of another model than {model.name!r} (d_model {model.d_model}, {model.n_layers} "
            "layers)."
        )


def _screened(model: Model, base: xr.Dataset, screen: bool) -> np.ndarray:
    harmful = base["harm"].values == "harmful"
    values = base["refusal_score"].values
    kept = np.where(harmful, values > 0, values < 0) if screen else np.ones(len(values), bool)
    for harm, mask in (("harmful", harmful), ("harmless", ~harmful)):
        if not mask.any():
            raise RequestError(f"there are no {harm} selection prompts; both classes are needed.")
        if not (mask & kept).any():
            raise WorkError(
                f"screening left no {harm} selection prompts: model {model.name!r} "
                f"{'complies with' if harm == 'harmful' else 'refuses'} all of them. Use prompts it "
                "tells apart, other --refusal-tokens, or --no-screen."
            )
    return np.asarray(kept)


def _chunks(items: np.ndarray, size: int) -> list[np.ndarray]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def _where(items: np.ndarray, some: np.ndarray) -> np.ndarray:
    """Indices of ``some`` within sorted ``items``."""
    return np.searchsorted(items, some)
