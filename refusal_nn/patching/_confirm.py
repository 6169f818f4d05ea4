"""What holds on test pairs: heads found on others, and all of them together beside random ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn import stats
from refusal_nn.patching._exchange import INTERCHANGES
from refusal_nn.patching._recovery import mean_recovery
from refusal_nn.patching._select import Rule
from refusal_nn.patching._sets import Head, HeadExchanges, heads_where

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured


def significant(table: xr.Dataset, rule: Rule) -> set[Head]:
    """Heads that carry something alone, in one direction at least."""
    passed = (table["head_p_adjusted"] <= rule.alpha) & (table["recovery_mean"] >= rule.min_effect)
    return set(heads_where(passed.any("interchange")))


def confirm(
    exchanges: HeadExchanges,
    base: Measured,
    effect: xr.DataArray,
    alone: set[Head],
    grown: dict[str, list[Head]],
    rule: Rule,
) -> dict[Head, str]:
    """Heads that hold on test pairs, and how they were found.

    A head found alone must carry something alone again. One found only in a set must be missed in
    it: the set without it moves less.

    Parameters
    ----------
    exchanges : HeadExchanges
    base : Measured
        The test pairs.
    effect : xarray.DataArray
        What single heads move on them, ``(prompt, interchange, layer, head)``.
    alone : set of Head
        Found by their own exchange.
    grown : dict of str to list of Head
        The sets that were grown by their joint effect, by interchange.
    rule : Rule
    """
    tests = [
        (head, "single", one)
        for head in sorted(alone)
        for one in effect.sel(layer=head[0], head=head[1]).values.T
    ]
    for interchange, heads in grown.items():
        rest = {head: tuple(h for h in heads if h != head) for head in heads if head not in alone}
        if not rest:
            continue
        sets = [tuple(heads), *filter(None, rest.values())]
        moved = exchanges.moved(base, interchange, sets, f"confirm_{interchange}")
        by_set = dict(zip(sets, moved.T, strict=True))
        for head, others in rest.items():
            tests.append((head, "joint", moved[:, 0] - by_set.get(others, 0.0)))
    if not tests:
        return {}
    gain = np.stack([moved for _, _, moved in tests], axis=1)
    # few tests, so Holm: it needs no more permutations than these
    found_p = stats.sign_flip(
        gain,
        cluster=base.pairs.family,
        correction="holm",
        n_permutations=rule.n_permutations,
        seed=rule.seed,
    ).p_adjusted
    share = gain.mean(axis=0) / float(base.difference.mean())
    held = (found_p <= rule.alpha) & (share >= rule.min_effect)
    out: dict[Head, str] = {}
    for (head, how, _), ok in zip(tests, held, strict=True):
        if ok:
            out.setdefault(head, how)
    return out


def joint_recovery(
    exchanges: HeadExchanges,
    base: Measured,
    heads: Sequence[Head],
    others: Sequence[Head],
    n_controls: int,
    *,
    confidence: float,
    seed: int,
) -> xr.Dataset:
    """Joint recovery on test pairs, and that of random sets of as many other heads.

    Returns
    -------
    xarray.Dataset
        Over ``interchange``: ``joint_recovery`` with ``_low`` and ``_high``, ``control_p``; where there
        are random sets, ``control_recovery`` ``(interchange, draw)``.
    """
    sets = _random_sets(others, len(heads), n_controls, seed)
    ends = np.full((4, len(INTERCHANGES)), np.nan)
    controls = np.full((len(INTERCHANGES), len(sets)), np.nan)
    for i, interchange in enumerate(INTERCHANGES if heads else ()):
        moved = exchanges.moved(base, interchange, [list(heads), *sets], f"joint_{interchange}")
        *found, _ = mean_recovery(
            moved[:, :1],
            base.difference,
            cluster=base.pairs.family,
            confidence=confidence,
            seed=seed,
        )
        ends[:3, i] = np.ravel(found)
        controls[i] = moved[:, 1:].mean(axis=0) / base.difference.mean()
        if sets:
            ends[3, i] = (1 + (controls[i] >= ends[0, i]).sum()) / (1 + len(sets))
    names = ("joint_recovery", "joint_recovery_low", "joint_recovery_high", "control_p")
    out = xr.Dataset({name: ("interchange", end) for name, end in zip(names, ends, strict=True)})
    if not sets:
        return out
    drawn = xr.DataArray(controls, {"draw": np.arange(len(sets))}, ("interchange", "draw"))
    return out.assign(control_recovery=drawn)


def _random_sets(others: Sequence[Head], size: int, n: int, seed: int) -> list[list[Head]]:
    """Up to ``n`` different random sets of ``size`` heads; fewer where there are not so many."""
    if not size or len(others) < size:
        return []
    rng = np.random.default_rng(seed)
    seen: dict[tuple[int, ...], None] = {}
    for _ in range(20 * n):
        if len(seen) == n:
            break
        seen.setdefault(tuple(sorted(rng.choice(len(others), size=size, replace=False).tolist())))
    return [[others[i] for i in drawn] for drawn in seen]
