"""Where to patch: blocks, sites and token positions, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from refusal_nn.contrasts import Metric, align
from refusal_nn.errors import RequestError
from refusal_nn.models.sites import WRITES

if TYPE_CHECKING:
    from refusal_nn.contrasts import AlignedPairs
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs


def checked_pairs(
    model: Model,
    pairs: Pairs,
    metric: Metric | None,
    positions: Sequence[int] | None,
    layers: Sequence[int] | None,
) -> AlignedPairs:
    """The pairs aligned; refuses what can be refused without a pass, so that nothing half-made is left.

    Raises
    ------
    PromptError
        If the pairs are not aligned.
    RequestError
        If the metric does not fit the model, or a position or block cannot be patched.
    """
    if metric is not None:
        metric.check(model)
    aligned = align(model, pairs)
    if positions is not None:
        checked_positions(aligned, positions)
    # without a metric the refusal log-odds are, which see every block
    blocks(model, metric or Metric("refusal-log-odds"), layers)
    return aligned


def blocks(model: Model, metric: Metric, layers: Sequence[int] | None) -> list[int]:
    """Blocks to patch, ascending: those asked for, or all that the metric can see.

    Raises
    ------
    RequestError
        If a block is not there, is named twice, or comes after what the metric reads.
    """
    depth = metric.reads_after(model)
    seen = f"in 0..{depth - 1} (metric {metric.kind} on model {model.name!r})"
    return _each_once("layers", range(depth) if layers is None else layers, range(depth), seen)


def from_the_end(positions: Sequence[int] | None) -> list[int] | None:
    """Positions that :func:`checked_pairs` let pass, ascending; None for all."""
    return None if positions is None else sorted(int(p) for p in positions)


def checked_positions(aligned: AlignedPairs, positions: Sequence[int] | None) -> list[int]:
    """Positions to patch, from the end of the prompt, ascending.

    Raises
    ------
    RequestError
        If one is not inside every pair, or is named twice.
    """
    if positions is None:
        return list(aligned.positions)
    shortest = min(aligned.lengths)
    inside = f"negative, from the end of the prompt; the shortest pair has {shortest} tokens"
    return _each_once("positions", positions, range(-shortest, 0), inside)


def _each_once(what: str, given: Sequence[int], allowed: range, meant: str) -> list[int]:
    chosen = sorted(int(number) for number in given)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(allowed):
        raise RequestError(f"{what} {list(given)} cannot be patched: name each once, {meant}.")
    return chosen


def checked_sites(model: Model, sites: Sequence[str]) -> list[str]:
    """``sites`` as a list, if each is a site of a block without heads, else an error."""
    names = [sites] if isinstance(sites, str) else list(sites)
    for site in names:
        if model.arch.place(site).heads:
            raise RequestError(
                f"site {site!r} has heads; patch them with refusal_nn.patching.heads, or name sites "
                f"such as {', '.join(WRITES)}."
            )
    if not names or len(set(names)) < len(names):
        raise RequestError(f"sites {names} cannot be patched: name at least one, each once.")
    return names
