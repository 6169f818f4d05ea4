"""Which analyses there are: ours, and those of installed packages; nothing is imported to know them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any

from refusal_nn._signature import Signature, read_signature
from refusal_nn.errors import RequestError, StoreError

OURS = {
    "direction-extract": "refusal_nn.directions._extract:extract",
    "direction-score": "refusal_nn.directions._score:score",
    "direction-select": "refusal_nn.directions._select:select",
    "direction-evaluate": "refusal_nn.directions._evaluate:evaluate_selected",
    "responses-evaluate": "refusal_nn.responses._evaluate:evaluate",
    "patch-positions": "refusal_nn.patching._kept:patch_positions",
    "patch-heads": "refusal_nn.patching._kept:patch_heads",
    "attribute-nodes": "refusal_nn.attribution._attribute:attribute",
    "attribute-edges": "refusal_nn.attribution._attribute:attribute",
    "circuit-discover": "refusal_nn.circuits._kept:discover_circuit",
    "circuit-evaluate": "refusal_nn.circuits._kept:evaluate_circuit",
    "circuit-compare": "refusal_nn.circuits._kept:compare_circuits",
}
"""Our analyses in the order of a study, and where each is declared."""

GROUP = "refusal_nn.analyses"
"""Entry points by which an installed package adds analyses: ``noun-verb = "module:function"``, the
module being the one that holds the function's text."""


@cache  # what is installed is read from the metadata of every package there is
def others() -> Mapping[str, str]:
    """Analyses of installed packages, by name; those that take a name of ours are left out."""
    points: list[EntryPoint] = list(entry_points(group=GROUP))
    return MappingProxyType({p.name: p.value for p in points if p.name not in OURS})


def targets() -> dict[str, str]:
    """Where every analysis is declared, ``module:function`` by name, ours first."""
    return {**OURS, **others()}


def declared(name: str) -> Signature:
    """The declaration of an analysis, read from its text.

    Raises
    ------
    RequestError
        If there is no such analysis, or its package is broken.
    """
    known = targets()
    if name not in known:
        raise RequestError(
            f"no installed package knows the analysis {name!r}; known are {', '.join(known)}."
        )
    return read_signature(known[name])


def function_at(target: str) -> Callable[..., Any]:
    """The function at ``module:function``.

    Raises
    ------
    RequestError
        If the module cannot be imported or has no such function: the package that offers it is broken.
    StoreError
        If it is ours and an installed package has declared one of its variables differently.
    """
    module, _, name = target.partition(":")
    try:
        found: Callable[..., Any] = getattr(import_module(module), name)
    except Exception as error:  # whatever a stranger's package raises
        if isinstance(error, StoreError) and target in OURS.values():
            raise  # the other declaration is a stranger's; ours needs no repair
        raise RequestError(
            f"{target} cannot be loaded ({type(error).__name__}: {error}); repair or uninstall the "
            f"package {module.partition('.')[0]!r}."
        ) from error
    return found


def declare_variables() -> Iterator[str]:
    """Declare the stored variables of every analysis, by importing the packages they are in.

    Yields
    ------
    str
        Each package after it was imported; one that is broken is named in the log and left out.

    Raises
    ------
    StoreError
        If an installed package has declared a variable of ours differently.
    """
    for target in dict.fromkeys(targets().values()):
        try:
            function_at(target)
        except StoreError:
            raise  # left out, our own variables would count as never declared
        except RequestError as error:
            logging.getLogger(__name__).warning("%s", error)
        else:
            yield target.partition(":")[0]
