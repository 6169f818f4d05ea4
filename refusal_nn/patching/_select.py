"""Forward selection of heads by what they do together.

Heads that each carry 1 % can carry 70 % together, and two that each do nothing can do everything, so
a ranking of single heads misses sets. Here the set grows by the head, or where no head helps by the
pair of heads, whose joint exchange moves the metric most on discovery pairs; whether it helps is
decided on other pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from refusal_nn import stats
from refusal_nn.patching._sets import Evaluate, Head


@dataclass(frozen=True)
class Step:
    """One step of a forward selection.

    Attributes
    ----------
    added : tuple of Head
        One head, or two that were looked ahead to together.
    recovery : float
        Joint recovery of the set with them, on discovery pairs.
    gain : float
        What they added to the joint recovery, on validation pairs.
    p : float
        Permutation p-value of the gain.
    accepted : bool
        The last step is the one that failed, unless no candidate or no room was left.
    """

    added: tuple[Head, ...]
    recovery: float
    gain: float
    p: float
    accepted: bool


@dataclass(frozen=True)
class Rule:
    """When a step counts.

    Attributes
    ----------
    alpha : float
        Level of the test of a step. Steps are tested in order and the first failure ends the
        selection, so the level holds for all of them together; where pairs of heads are looked ahead
        to, each of the two attempts has half of it.
    min_effect : float
        Least gain, as a share of the difference between the prompts.
    max_heads : int
    lookahead : int
        How many of the best heads are tried in pairs where no single one helps; 0 for none.
    n_permutations, seed : int
    """

    alpha: float = 0.05
    min_effect: float = 0.01
    max_heads: int = 16
    lookahead: int = 8
    n_permutations: int = 9999
    seed: int = 0


def forward_select(
    discovery: Evaluate,
    validation: Evaluate,
    candidates: Sequence[Head],
    *,
    scale: tuple[float, float],
    family: np.ndarray | None,
    rule: Rule,
) -> list[Step]:
    """Grow a set of heads while its joint exchange moves more on pairs it was not chosen on.

    Parameters
    ----------
    discovery, validation : callable
        The joint effect of sets of heads on each pair of the two sets of pairs.
    candidates : sequence of Head
    scale : (float, float)
        Mean difference between the prompts of discovery and of validation pairs.
    family : array, ``[pair]``, optional
        Of the validation pairs; whole families are flipped.
    rule : Rule

    Returns
    -------
    list of Step
        In order; the heads of accepted steps are the set.
    """
    level = rule.alpha / 2 if rule.lookahead >= 2 else rule.alpha
    chosen: list[Head] = []
    reached: np.ndarray | float = 0.0  # joint effect of the chosen set on validation pairs
    before = 0.0  # and its mean on discovery pairs
    steps: list[Step] = []

    def attempt(
        options: Sequence[tuple[Head, ...]], name: str
    ) -> tuple[Step, np.ndarray, np.ndarray]:
        means = discovery([[*chosen, *option] for option in options], name).mean(axis=0)
        best = int(np.argmax(means))
        added = options[best]
        there = validation([[*chosen, *added]], name)[:, 0]
        gain = there - reached
        test = stats.sign_flip(
            gain, cluster=family, n_permutations=rule.n_permutations, seed=rule.seed
        )
        share = float(gain.mean() / scale[1])
        accepted = bool(
            test.p <= level
            and share >= rule.min_effect
            and means[best] - before >= rule.min_effect * scale[0]
        )
        step = Step(added, float(means[best] / scale[0]), share, float(test.p), accepted)
        return step, there, means

    while len(chosen) < rule.max_heads:
        left = [head for head in candidates if head not in chosen]
        if not left:
            break
        step, there, means = attempt([(head,) for head in left], f"{len(steps)}")
        room = rule.max_heads - len(chosen)
        if not step.accepted and rule.lookahead >= 2 and len(left) >= 2 and room >= 2:
            ranked = [left[i] for i in np.argsort(-means, kind="stable")[: rule.lookahead]]
            step, there, _ = attempt(list(combinations(ranked, 2)), f"{len(steps)}_pairs")
        steps.append(step)
        if not step.accepted:
            break
        chosen += step.added
        reached, before = there, step.recovery * scale[0]
    return steps
