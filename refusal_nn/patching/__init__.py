"""Exact activation patching between the two prompts of a pair.

The *clean* prompt is the harmful one, the *corrupted* prompt its harmless partner.
:func:`positions` exchanges activations at every site, block and token; :func:`heads` exchanges
single attention heads; :func:`refusal_heads` finds the heads that decide to refuse, tested on pairs
that took no part in finding them; :func:`generate` shows what a patched model says.
"""

from refusal_nn.contrasts._align import AlignedPairs, align
from refusal_nn.patching import _variables as _variables
from refusal_nn.patching._exchange import INTERCHANGES, Swap
from refusal_nn.patching._generate import generate
from refusal_nn.patching._heads import heads
from refusal_nn.patching._kept import (
    head_rows,
    joint_rows,
    patch_heads,
    patch_positions,
    strongest_rows,
)
from refusal_nn.patching._positions import positions
from refusal_nn.patching._refusal_heads import refusal_heads
from refusal_nn.patching._sets import of_heads
from refusal_nn.runs._old import old_run

positions_run = old_run("positions_run", patch_positions, "model", "pairs")
heads_run = old_run("heads_run", patch_heads, "model", "pairs")

__all__ = [
    "INTERCHANGES",
    "AlignedPairs",
    "Swap",
    "align",
    "generate",
    "head_rows",
    "heads",
    "joint_rows",
    "of_heads",
    "patch_heads",
    "patch_positions",
    "positions",
    "refusal_heads",
    "strongest_rows",
]
