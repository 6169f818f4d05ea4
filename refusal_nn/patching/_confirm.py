"""What holds on test pairs: heads found on others, and all of them together beside random ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn import stats
from refusal_nn.patching._exchange import INTERCHANGES
from refusal_nn.patching._recovery import mean_recovery
from refusal_nn.patching._select import Rule, Step
from refusal_nn.patching._sets import Head, HeadExchanges

if TYPE_CHECKING:
    from refusal_nn.contrasts import Measured


def significant(table: xr.Dataset, rule: Rule) -> set[Head]:
    """Heads that carry something alone, in one direction at least."""
    passed = (table["head_p_adjusted"] <= rule.alpha) & (table["recovery_mean"] >= rule.min_effect)
    where = np.argwhere(passed.any("interchange").transpose("layer", "head").values)
    return {(int(table["layer"][i]), int(h)) for i, h in where}


def confirm(
    exchanges: HeadExchanges,
    base: Measured,
    effect: xr.DataArray,
    alone: set[Head],
    steps: dict[str, list[Step]],
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
        What single heads move on them, ``(pair, interchange, layer, head)``.
    alone : set of Head
        Found by their own exchange.
    steps : dict of str to list of Step
        The forward selections.
    rule : Rule
    """
    scale = float(base.difference.mean())
    tests: list[tuple[Head, str]] = []
    gains: list[np.ndarray] = []
    for head in sorted(alone):
        for one in effect.sel(layer=head[0], head=head[1]).transpose("interchange", "prompt"):
            tests.append((head, "single"))
            gains.append(one.values)
    for interchange, found in steps.items():
        grown = [head for step in found if step.accepted for head in step.added]
        extra = [head for head in grown if head not in alone]
        if not extra:
            continue
        without = [[h for h in grown if h != head] for head in extra]
        sets = [grown, *(w for w in without if w)]
        moved = exchanges.moved(base, interchange, sets, f"confirm_{interchange}")
        for head, rest in zip(extra, without, strict=True):
            tests.append((head, "joint"))
            less = moved[:, 1 + [w for w in without if w].index(rest)] if rest else 0.0
            gains.append(moved[:, 0] - less)
    if not tests:
        return {}
    gain = np.stack(gains, axis=1)
    # few tests, so Holm: it needs no more permutations than these
    found_p = stats.sign_flip(
        gain,
        cluster=base.pairs.family,
        correction="holm",
        n_permutations=rule.n_permutations,
        seed=rule.seed,
    ).p_adjusted
    held = (found_p <= rule.alpha) & (gain.mean(axis=0) / scale >= rule.min_effect)
    out: dict[Head, str] = {}
    for (head, how), ok in zip(tests, held, strict=True):
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
) -> dict[str, np.ndarray]:
    """Joint recovery on test pairs, and that of random sets of as many other heads."""
    sets = _random_sets(others, len(heads), n_controls, seed)
    out: dict[str, list[Any]] = {k: [] for k in ("value", "low", "high", "controls", "p")}
    for interchange in INTERCHANGES:
        if not heads:
            found = (np.nan, np.nan, np.nan, np.full(len(sets), np.nan), np.nan)
        else:
            moved = exchanges.moved(base, interchange, [list(heads), *sets], f"joint_{interchange}")
            value, low, high, _ = mean_recovery(
                moved[:, :1],
                base.difference,
                cluster=base.pairs.family,
                confidence=confidence,
                seed=seed,
            )
            controls = moved[:, 1:].mean(axis=0) / base.difference.mean()
            p = (1 + int((controls >= value[0]).sum())) / (1 + len(sets)) if sets else np.nan
            found = (value[0], low[0], high[0], controls, p)
        for kept, part in zip(out.values(), found, strict=True):
            kept.append(part)
    return {name: np.array(values) for name, values in out.items()}


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
