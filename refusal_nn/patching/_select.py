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
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn import stats
from refusal_nn.patching._sets import Evaluate, Head, head_name
from refusal_nn.store import Next, Recorder

BLANK = {
    "step_heads": "",
    "step_accepted": False,
    **dict.fromkeys(("step_recovery", "step_gain", "step_p"), np.nan),
}
"""What is said of a step that was not done."""


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
    family: np.ndarray,
    rule: Rule,
    recorder: Recorder,
    name: str = "grow",
) -> tuple[list[Head], xr.Dataset]:
    """Grow a set of heads while its joint exchange moves more on pairs it was not chosen on.

    Parameters
    ----------
    discovery, validation : callable
        The joint effect of sets of heads on each pair of the two sets of pairs.
    candidates : sequence of Head
    scale : (float, float)
        Mean difference between the prompts of discovery and of validation pairs.
    family : array, ``[pair]``
        Of the validation pairs; whole families are flipped.
    rule : Rule
    recorder : Recorder
        Keeps the selection as a loop.
    name : str
        Of the loop.

    Returns
    -------
    heads : list of Head
        The set, in the order it grew.
    steps : xarray.Dataset
        Over ``step``: ``step_heads``, one head, or two that were looked ahead to together;
        ``step_recovery``, joint recovery of the set with them on discovery pairs; ``step_gain``, what
        they added to it on validation pairs; ``step_p``, permutation p-value of the gain;
        ``step_accepted``: the last step is the one that failed, unless no candidate or no room was
        left.
    """
    level = rule.alpha / 2 if rule.lookahead >= 2 else rule.alpha
    most = rule.max_heads

    def grow(step: int, state: xr.Dataset, recorder: Recorder) -> Next:
        chosen = [k for k in state["chosen"].values.tolist() if k >= 0]
        reached, before = state["reached"].values, float(state["before"])

        def attempt(
            options: Sequence[tuple[int, ...]], end: str
        ) -> tuple[tuple[int, ...], dict[str, Any], np.ndarray, np.ndarray]:
            sets = [[candidates[k] for k in (*chosen, *option)] for option in options]
            means = discovery(sets, f"grow{end}", recorder).mean(axis=0)
            best = int(np.argmax(means))
            there = validation([sets[best]], f"stop{end}", recorder)[:, 0]
            gain = there - reached
            test = stats.sign_flip(
                gain, cluster=family, n_permutations=rule.n_permutations, seed=rule.seed
            )
            share = float(gain.mean() / scale[1])
            said = {
                "step_heads": "+".join(head_name(candidates[k]) for k in options[best]),
                "step_recovery": float(means[best] / scale[0]),
                "step_gain": share,
                "step_p": float(test.p),
                "step_accepted": test.p <= level
                and share >= rule.min_effect
                and means[best] - before >= rule.min_effect * scale[0],
            }
            return options[best], said, there, means

        left = [k for k in range(len(candidates)) if k not in chosen]
        added, said, there, means = attempt([(k,) for k in left], "")
        room = min(len(left), most - len(chosen))
        if not said["step_accepted"] and rule.lookahead >= 2 and room >= 2:
            ranked = [left[i] for i in np.argsort(-means, kind="stable")[: rule.lookahead]]
            added, said, there, _ = attempt(list(combinations(ranked, 2)), "_pairs")
        if not said["step_accepted"]:
            return Next(state, said, done=True)
        chosen += added
        after = {
            "chosen": np.append(chosen, np.full(most - len(chosen), -1)),
            "reached": there,
            "before": said["step_recovery"] * scale[0],
        }
        return Next(after, said, done=len(chosen) in (most, len(candidates)))

    first = {
        "chosen": np.full(most, -1),
        # joint effect of the chosen set on validation pairs, and its mean on discovery pairs
        "reached": np.zeros(len(family)),
        "before": np.zeros(()),
    }
    records = xr.Dataset(
        {k: ("step", np.full(most, v, object if v == "" else None)) for k, v in BLANK.items()}
    )
    found = recorder.loop(name, first, most, grow, records=records)
    return [candidates[k] for k in found.state["chosen"].values if k >= 0], found.records
