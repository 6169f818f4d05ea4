"""What was typed, as a run's provenance shows it. Nothing is made again from it."""

from __future__ import annotations

import click

ARGV = "refusal_nn.argv"
"""Key of the context's ``meta`` under which the root keeps its arguments."""


def command_line() -> str:
    """The running command for a run's provenance: absolute paths cut short, keys hidden."""
    from refusal_nn import store

    return store.command_line(["refusal-nn", *click.get_current_context().meta[ARGV]])
