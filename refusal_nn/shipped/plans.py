"""The plain data that travels: what its dicts hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NotRequired, TypedDict

import torch

Named = tuple[str, dict[str, Any]]
"""A name and the arguments that go with it."""


class View(TypedDict):
    """One site at a module: operations to apply, then captures to take.

    ``view`` says which part of the module's tensor it is (see ``heads_of``; ``("residual",)``: with the
    residual stream before it), ``heads`` into how many that is unfolded (0: none), ``keep`` under what
    name later sites find it. ``whole``: all of the module's tensor, behind the views of its parts.
    """

    site: str
    view: tuple[Any, ...] | None
    heads: int
    ops: list[Named]
    captures: list[Named]
    keep: str | None
    whole: NotRequired[bool]


class Visit(TypedDict):
    """One module of a pass: ``io`` is ``input``, ``output`` or ``skip``; ``decode``: at every step."""

    path: str
    io: str
    views: list[View]
    decode: bool


class Plan(TypedDict):
    """What one pass does.

    ``visits`` in execution order and ``logits``, views of the model's output. ``stacked``: for a
    capture of several layers, which of those taken comes where; ``live``: captures that stay in the
    graph; ``held``: results that stay where they are for later requests; ``gradient``: the graph is
    kept; ``after``: a function of the table, and its arguments, that makes results of the captures.
    """

    visits: list[Visit]
    logits: list[View]
    stacked: dict[str, list[int]]
    live: list[str]
    held: list[str]
    gradient: bool
    after: Named | None


class PlainRequest(TypedDict):
    """One pass, or one generation, of a batch: model inputs, plan, and options of the model's call."""

    inputs: Mapping[str, torch.Tensor]
    plan: Plan
    options: dict[str, Any]
    generate: bool


class JobContent(TypedDict):
    """A job.

    ``batches`` of requests; ``shared``: run before them for what they hold; ``check``: the load-time
    check, or none; ``weigh``: whether to tell a digest of the weights.
    """

    shared: list[PlainRequest]
    batches: list[list[PlainRequest]]
    check: list[PlainRequest]
    weigh: bool


class Packed(TypedDict):
    """Results of batches: tensors joined to one a dtype, and where each is in it."""

    layout: list[list[list[list[Any]]]]
    flat: dict[str, torch.Tensor]


class Facts(TypedDict):
    """Of the model there: dtype, commit of the hub and digest of its weights, empty where unknown."""

    dtype: str
    commit: str
    weights: str


class JobAnswer(TypedDict):
    """What comes back of a job."""

    batches: Packed
    check: Packed
    facts: Facts


def is_ref(value: Any) -> bool:
    """Whether a value of a plan is a reference; see :func:`refusal_nn.shipped.walk.bind`."""
    return isinstance(value, tuple) and len(value) == 6 and value[0] == "ref"


def mapped(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Plain data with ``leaf`` of each thing in it that is no container; a reference is one thing."""
    if isinstance(value, Mapping):
        return {k: mapped(v, leaf) for k, v in value.items()}
    if isinstance(value, list | tuple) and not is_ref(value):
        return type(value)(mapped(v, leaf) for v in value)
    return leaf(value)


def leaves(value: Any) -> list[Any]:
    """The things in plain data that are no containers."""
    found: list[Any] = []
    mapped(value, found.append)
    return found
