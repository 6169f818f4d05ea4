"""Behaviour under interventions: completions, judged, with a coherence gate and intervals.

Every condition runs on every prompt, so that side effects are in the table beside the effect meant:
what ablation does to harmless prompts, what addition does to harmful ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import xarray as xr

from refusal_nn.contrasts._refusal_tokens import score_capture
from refusal_nn.errors import RequestError, WorkError
from refusal_nn.interventions import Intervention
from refusal_nn.responses._coherence import REFERENCE_REQUEST, SKIPPED, nll_limit
from refusal_nn.responses._complete import Grid, complete
from refusal_nn.responses._judge import judge
from refusal_nn.responses._rates import rates
from refusal_nn.runs import analysis
from refusal_nn.runs._batches import prompt_labels, rows_asked
from refusal_nn.store import MemoryRecorder, Recorder
from refusal_nn.tracing import Handle, Work, of_rows, pad

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts

MAX_NEW_TOKENS = 64
"""Length of the greedy completions that are judged, in tokens."""


@analysis("responses-evaluate", section="refusal_nn.report._direction:part")
def evaluate(
    model: Model,
    prompts: Prompts,
    conditions: Mapping[str, Sequence[Intervention]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    refusal_tokens: Sequence[int] | None = None,
    reference_request: str = REFERENCE_REQUEST,
    batch_size: int | None = None,
    confidence: float = 0.95,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """Refusal of each prompt under each condition, with rates and intervals.

    A completion is *coherent* if at most .3 of its 4-grams repeat and the mean NLL of its tokens
    from the sixth on, under the unedited model after a fixed harmless request, is at most the 99th
    percentile of the same statistic over the unedited model's own harmless completions. A broken
    completion counts as neither refusal nor compliance.

    Parameters
    ----------
    model : Model
    prompts : Prompts
        Test prompts, disjoint from those the interventions were made on. Must hold harmless ones,
        which calibrate the coherence gate.
    conditions : mapping
        Name to a list of interventions; ``baseline`` (no intervention) is added if it is not there.
        A vector with one row a prompt gives each prompt its own.
    max_new_tokens : int
        Length of the greedy completions, in tokens; 6 or more, which the coherence gate needs.
    refusal_tokens : sequence of int, optional
        Adds ``refusal_score``: the log-odds of these tokens at the last prompt position.
    reference_request : str
        The harmless request of the coherence statistic.
    batch_size : int, optional
        Prompts a pass. The result does not depend on it.
    confidence : float
        Of the intervals.
    recorder : Recorder, optional

    Returns
    -------
    xarray.DataTree
        At the root, over ``(intervention, prompt)``: ``completion``, ``n_tokens``, ``repetition``,
        ``nll`` (nats a token, NaN below six tokens), ``coherent``, ``refused``,
        and ``refusal_score`` (nats) if tokens were given; ``text`` ``(prompt)``. In group ``rates``,
        over ``(intervention, style)``:
        ``refusal_rate`` with ``_low``, ``_high`` and ``_n``, ``coherent_rate``, and, where refusal
        tokens were given, ``first_token_refusal_rate``; over
        ``(intervention, style, category)`` the same with the prefix ``category_``.

    Raises
    ------
    RequestError
        If there are no harmless prompts, a condition is not a list of interventions, ``baseline``
        has some, completions are to be too short to judge, or a row-wise vector does not have one
        row a prompt.
    WorkError
        If the model answers every harmless prompt in five tokens or fewer.
    """
    named = _checked_conditions(conditions)
    if max_new_tokens <= SKIPPED:
        raise RequestError(
            f"completions of {max_new_tokens} tokens cannot be judged for coherence, which is read "
            f"from their token {SKIPPED + 1} on; ask for max_new_tokens {SKIPPED + 1} or more "
            "(--max-new-tokens)."
        )
    if not len(prompts.harmless):
        raise RequestError(
            f"prompts {prompts.name!r} hold no harmless ones; the coherence gate is calibrated on the "
            "model's completions of harmless prompts."
        )
    rows, n = model.chat.tokens(prompts.texts), len(prompts)

    def ask(work: Work, name: str, part: slice) -> Handle:
        batch, edits = pad(rows[part], model.pad_token), of_rows(named[name], part, n)
        return work.generate(batch, edits, max_new_tokens=max_new_tokens)

    def score(work: Work, name: str, part: slice) -> Handle:
        batch, edits = pad(rows[part], model.pad_token), of_rows(named[name], part, n)
        return work.forward(batch, [score_capture(refusal_tokens or ())], edits)

    measured = complete(
        model,
        Grid(list(named), prompt_labels(prompts), n, rows_asked(model, batch_size)),
        ask,
        max_new_tokens=max_new_tokens,
        recorder=recorder if recorder is not None else MemoryRecorder(),
        score=None if refusal_tokens is None else score,
        reference_request=reference_request,
    )
    asked = prompts.to_dataset()
    out = judge(measured, calibrated(measured)).assign(text=asked["text"])
    out = out.assign_attrs(
        **model.identity(),
        **asked.attrs,
        reference_request=reference_request,
        max_new_tokens=max_new_tokens,
        refusal_tokens=[int(t) for t in refusal_tokens or ()],
    )
    return xr.DataTree.from_dict({"/": out, "/rates": rates(out, confidence=confidence)})


def _checked_conditions(
    conditions: Mapping[str, Sequence[Intervention]],
) -> dict[str, list[Intervention]]:
    """The conditions by name, ``baseline`` first where it is not given."""
    named: dict[str, list[Intervention]] = {"baseline": []}
    for name, given in conditions.items():
        if isinstance(given, Intervention) or not isinstance(given, Iterable):
            raise RequestError(
                f"condition {name!r} is a {type(given).__name__}; give a list of interventions, "
                f"such as {{{name!r}: [DirectionalAblation(direction)]}}."
            )
        named[str(name)] = list(given)
        for item in named[str(name)]:
            if not isinstance(item, Intervention):
                raise RequestError(
                    f"condition {name!r} holds a {type(item).__name__}; give a list of interventions."
                )
    if named["baseline"]:
        raise RequestError(
            "condition 'baseline' is the unedited model, which the coherence gate is calibrated on; "
            "give its interventions another name."
        )
    return named


def calibrated(measured: xr.Dataset) -> float:
    """The NLL limit by condition ``baseline`` on harmless prompts.

    Raises
    ------
    WorkError
        If no such completion is longer than five tokens, so that there is no limit.
    """
    harmless = measured["harm"].values == "harmless"
    limit = nll_limit(measured["nll"].sel(intervention="baseline").values[harmless])
    if limit is None:
        raise WorkError(
            f"none of {int(harmless.sum())} harmless prompts got a completion of more than {SKIPPED} "
            "tokens from the unedited model, so there is nothing to calibrate the coherence gate on; "
            "add harmless prompts that it answers at length."
        )
    return limit
