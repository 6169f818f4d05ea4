"""The heads that decide to refuse: found on some pairs, confirmed on others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.contrasts import Contrast, resolve_metric
from refusal_nn.errors import PromptError, RequestError
from refusal_nn.models._blocks import block_places
from refusal_nn.patching._cascade import cascade, direct_attribution
from refusal_nn.patching._confirm import confirm, joint_recovery, significant
from refusal_nn.patching._exchange import INTERCHANGES
from refusal_nn.patching._heads import head_table
from refusal_nn.patching._roles import stability
from refusal_nn.patching._select import BLANK, Rule, forward_select
from refusal_nn.patching._sets import Head, HeadExchanges, head_name, heads_in, laid_out
from refusal_nn.patching._tables import head_grid
from refusal_nn.patching._where import blocks, checked_pairs, from_the_end
from refusal_nn.prompts import check_disjoint
from refusal_nn.prompts._labels import SPLITS
from refusal_nn.runs._batches import rows_asked
from refusal_nn.store import MemoryRecorder, Recorder

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured, Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs

GROW_PAIRS = 64
"""Train pairs that sets are grown on: which head is best needs fewer than whether it counts."""
CORRECTIONS = ("max-t", "holm", "bh")
"""For the number of heads and directions tested; see :func:`refusal_nn.stats.sign_flip`."""


def refusal_heads(
    model: Model,
    pairs: Pairs,
    *,
    metric: Metric | None = None,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    alpha: float = 0.05,
    min_effect: float = 0.01,
    correction: str = "max-t",
    candidates: int = 64,
    max_heads: int = 16,
    lookahead: int = 8,
    n_controls: int = 99,
    screen: bool = True,
    confidence: float = 0.95,
    n_permutations: int = 9999,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """Find the attention heads that decide to refuse, and what they are to one another.

    On the *train* pairs every head is exchanged on its own, in both directions, and sets of heads
    are grown by their joint effect; *val* pairs decide when a set stops growing; on the *test*
    pairs the heads found are tested again, alone or by what the set loses without them, and
    compared with as many heads drawn at random.

    Parameters
    ----------
    model : Model
    pairs : Pairs
        With all three splits, which share no prompt and no family.
    metric : Metric, optional
        Default: log-odds of the refusal tokens, found from the model's refusals of train pairs.
    positions : sequence of int, optional
        Tokens at which heads are exchanged, from the end of the prompt; all when None.
    layers : sequence of int, optional
        Default every block that the metric can see.
    alpha : float
        Level of every test, corrected for the heads and directions tested.
    min_effect : float
        Least share of the difference between the prompts that a head must carry, alone or in its
        set: with enough pairs any effect is significant.
    correction : {"max-t", "holm", "bh"}
        For single heads on train pairs; see :func:`refusal_nn.stats.sign_flip`.
    candidates : int
        How many heads, by their effect alone, the sets are grown from; a set of heads that all do
        nothing alone is found only among these.
    max_heads, lookahead : int
        See :class:`refusal_nn.patching._select.Rule`.
    n_controls : int
        Random sets of as many other heads.
    screen : bool
        With the refusal log-odds: leave out pairs that the model does not treat as labelled.
    confidence : float
    n_permutations : int
    batch_size : int, optional
        Rows (set, pair) a pass. The result does not depend on it.
    seed : int
    recorder : Recorder, optional

    Returns
    -------
    xarray.DataTree
        At the root, over ``(layer, head)``: ``refusal_head``, ``found_by`` (single or joint),
        ``role`` (gate, amplifier, relay, independent), ``band``, ``stability``, ``direct_attribution``;
        ``recovery_mean`` with interval and ``head_p_adjusted`` of single heads on *test* pairs
        ``(interchange, layer, head)``; ``joint_recovery`` with interval and ``control_p``
        ``(interchange)``, ``control_recovery`` ``(interchange, draw)``. In groups ``train`` and
        ``test`` the table of :func:`heads` for those pairs; in ``steps`` the forward selections;
        in ``cascade``, where there are any, the variable ``cascade`` ``(src,
        dst)`` over the refusal heads.

    Raises
    ------
    PromptError
        If a split is missing or shares prompts or families with another, or as :func:`positions`.
    RequestError
        As :func:`heads`.

    References
    ----------
    arXiv 2604.04385 (gate and amplifier heads); Arditi et al. 2024, *refusal_mi* notebooks (early
    refusal heads that matter together).
    """
    rule = Rule(alpha, min_effect, max_heads, lookahead, n_permutations, seed)
    check_options(rule, candidates, n_controls, correction)
    check_splits(pairs)
    rec = recorder if recorder is not None else MemoryRecorder()
    block_places(model)  # of direct attribution
    rows = rows_asked(model, batch_size)
    checked_pairs(model, pairs, metric, positions, layers)
    chosen_metric = resolve_metric(
        model, metric, pairs.train, recorder=rec, batch_size=batch_size, seed=seed
    )
    chosen = blocks(model, chosen_metric, layers)
    base = {
        split: Contrast(model, getattr(pairs, split), chosen_metric).measured(
            rec, rows=rows, stage=f"baseline_{split}", screen=screen
        )
        for split in SPLITS
    }
    where = from_the_end(positions)
    exchanges = HeadExchanges(where, rows, rec)
    test = base["test"]

    effect, tables = {}, {}
    for split in ("train", "test"):
        effect[split] = exchanges.singles(base[split], INTERCHANGES, chosen, f"heads_{split}")
        tables[split] = head_table(
            base[split],
            effect[split],
            correction=correction,
            n_permutations=n_permutations,
            confidence=confidence,
            seed=seed,
        )
    all_heads = heads_in(model, chosen)
    alone = significant(tables["train"], rule)
    grown, steps = _grow(exchanges, base, effect["train"], all_heads, candidates, rule)
    found = confirm(exchanges, test, effect["test"], alone, grown, rule)

    heads = sorted(found)
    tower = cascade(test, heads, positions=where, rows=rows, recorder=rec)
    others = [head for head in all_heads if head not in found]
    joint = joint_recovery(
        exchanges, test, heads, others, n_controls, confidence=confidence, seed=seed
    )
    frequency, jaccard, pairwise = stability(
        effect["train"].values,
        base["train"].difference,
        family=base["train"].pairs.family,
        selected=laid_out(dict.fromkeys(alone, True), False, chosen, model.n_heads),
        alpha=alpha,
        min_effect=min_effect,
        seed=seed,
    )
    direct = direct_attribution(test, rows=rows, recorder=rec)
    root = head_grid(found, tower["cascade"].values, tables["test"], joint, frequency, direct)
    root.attrs |= {
        **model.identity(),
        **pairs.to_dataset().attrs,
        **chosen_metric.to_attrs(),
        "alpha": alpha,
        "min_effect": min_effect,
        "candidates": candidates,
        "positions": [] if where is None else where,
        "n_layers": model.n_layers,
        "heads": [head_name(head) for head in heads],
        "stability_jaccard": jaccard,
        "stability_pairwise_jaccard": pairwise,
        **{f"n_{split}_pairs": len(base[split]) for split in SPLITS},
    }
    groups = {"/": root, **{f"/{k}": v for k, v in tables.items()}, "/steps": steps}
    if heads:
        groups["/cascade"] = tower
    return xr.DataTree.from_dict(groups)


def _grow(
    exchanges: HeadExchanges,
    base: dict[str, Measured],
    effect: xr.DataArray,
    heads: Sequence[Head],
    candidates: int,
    rule: Rule,
) -> tuple[dict[str, list[Head]], xr.Dataset]:
    """The sets both ways, from the heads that do most alone, and the selections' steps."""
    grow, stop = base["train"].spread(GROW_PAIRS), base["val"]
    grown, steps = {}, []
    for i, way in enumerate(INTERCHANGES):
        best = np.argsort(-effect.values[:, i].mean(axis=0).ravel(), kind="stable")[:candidates]
        grown[way], told = forward_select(
            partial(exchanges.moved, grow, way),
            partial(exchanges.moved, stop, way),
            [heads[k] for k in best],
            scale=(float(grow.difference.mean()), float(stop.difference.mean())),
            family=stop.pairs.family,
            rule=rule,
            recorder=exchanges.recorder,
            name=f"grow_{way}",
        )
        steps.append(told)
    return grown, xr.concat(steps, effect["interchange"], join="outer", fill_value=BLANK)


def check_splits(pairs: Pairs) -> None:
    """Refuse pairs without all three splits, or whose splits share prompts or families.

    Raises
    ------
    PromptError
    """
    if missing := [s for s in SPLITS if s not in pairs.splits]:
        raise PromptError(
            f"{pairs.name} has no pairs in split {missing[0]!r}; heads are found on train pairs, "
            "sets of heads stop growing by val pairs, and test pairs confirm them."
        )
    check_disjoint(pairs.prompts())


def check_options(rule: Rule, candidates: int, n_controls: int, correction: str) -> None:
    """Refuse options of :func:`refusal_heads` that cannot be.

    Raises
    ------
    RequestError
    """
    if correction not in CORRECTIONS:
        raise RequestError(
            f"correction {correction!r} is not one of {', '.join(CORRECTIONS)}, the ways to correct "
            "for the number of heads."
        )
    if not 0 < rule.alpha < 1:
        raise RequestError(f"alpha {rule.alpha} is not between 0 and 1; .05 is usual.")
    if not 0 <= rule.min_effect < 1:
        raise RequestError(
            f"min_effect {rule.min_effect} is not a share of the difference; give 0 to 1."
        )
    if candidates < 1 or rule.max_heads < 1 or n_controls < 0 or rule.lookahead < 0:
        raise RequestError(
            "candidates and max_heads must be at least 1, lookahead and n_controls at least 0."
        )
