"""One model on the three splits of a set of pairs: baselines, single heads, sets of heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from refusal_nn.patching._baseline import Baseline, baseline
from refusal_nn.patching._exchange import INTERCHANGES
from refusal_nn.patching._heads import single_effects
from refusal_nn.patching._positions import checked_positions
from refusal_nn.patching._select import Evaluate, Rule, Step, forward_select
from refusal_nn.patching._sets import Head, exchange_sets

if TYPE_CHECKING:
    from refusal_nn.attribution import Metric
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder

SPLITS = ("train", "val", "test")
GROW_PAIRS = 64
"""Train pairs that sets are grown on: which head is best needs fewer than whether it counts."""


class Study:
    """One model on the three splits of a set of pairs.

    Parameters
    ----------
    model : Model
    pairs : Pairs
    metric : Metric
    layers : list of int
        Blocks studied, ascending.
    positions : sequence of int, optional
        Tokens at which heads are exchanged; all when None.
    screen : bool
    rows : int
        Rows a pass.
    recorder : Recorder

    Attributes
    ----------
    base : dict of str to Baseline
        By split.
    where : list of int or None
        The positions, checked.
    """

    def __init__(
        self,
        model: Model,
        pairs: Pairs,
        metric: Metric,
        layers: list[int],
        positions: Sequence[int] | None,
        screen: bool,
        rows: int,
        recorder: Recorder,
    ) -> None:
        self.model = model
        self.metric = metric
        self.layers = layers
        self.rows = rows
        self.recorder = recorder
        self.base: dict[str, Baseline] = {
            split: baseline(
                model,
                getattr(pairs, split),
                metric,
                screen=screen,
                rows=rows,
                recorder=recorder,
                stage=f"baseline_{split}",
            )
            for split in SPLITS
        }
        self.where: list[int] | None = None
        if positions is not None:
            for base in self.base.values():
                self.where = checked_positions(base.aligned, positions)

    @property
    def all_heads(self) -> list[Head]:
        """Every head of the blocks studied."""
        return [(layer, head) for layer in self.layers for head in range(self.model.n_heads)]

    def singles(self, split: str) -> np.ndarray:
        """Effects of single heads, ``[pair, interchange, layer, head]``."""
        return single_effects(
            self.model,
            self.base[split],
            self.metric,
            INTERCHANGES,
            self.layers,
            self.where,
            self.rows,
            self.recorder,
            stage=f"heads_{split}",
        )

    def joint(self, base: Baseline, interchange: str, stage: str) -> Evaluate:
        """What sets of heads move together on some pairs; each call is a stage of its own."""
        calls = 0

        def evaluate(sets: Sequence[Sequence[Head]]) -> np.ndarray:
            nonlocal calls
            calls += 1
            return exchange_sets(
                self.model,
                base,
                self.metric,
                interchange,
                sets,
                positions=self.where,
                rows=self.rows,
                recorder=self.recorder,
                stage=f"{stage}_{interchange}_{calls}",
            )

        return evaluate

    def forward(self, effect: np.ndarray, candidates: int, rule: Rule) -> dict[str, list[Step]]:
        """The forward selection of each direction, from the heads that do most alone."""
        grow, stop = self.base["train"].spread(GROW_PAIRS), self.base["val"]
        out = {}
        for i, interchange in enumerate(INTERCHANGES):
            alone = effect[:, i].mean(axis=0).ravel()
            best = np.argsort(-alone, kind="stable")[:candidates]
            out[interchange] = forward_select(
                self.joint(grow, interchange, "grow"),
                self.joint(stop, interchange, "stop"),
                [self.all_heads[k] for k in best],
                scale=(float(grow.difference.mean()), float(stop.difference.mean())),
                family=stop.pairs.family,
                rule=rule,
            )
        return out
