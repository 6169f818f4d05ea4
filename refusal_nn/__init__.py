"""Find, test and store the mechanisms behind refusal in chat language models.

Everything public is reachable from here and nothing is imported until it is used: ``import
refusal_nn`` loads neither torch nor xarray.

Examples
--------
>>> import refusal_nn as rn
>>> rn.judges.substring(["I cannot help with that.", "Sure, here is how."]).tolist()
[True, False]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr

    import refusal_nn.attribution as attribution
    import refusal_nn.backends as backends
    import refusal_nn.circuits as circuits
    import refusal_nn.contrasts as contrasts
    import refusal_nn.demo as demo
    import refusal_nn.directions as directions
    import refusal_nn.errors as errors
    import refusal_nn.interventions as interventions
    import refusal_nn.judges as judges
    import refusal_nn.models as models
    import refusal_nn.patching as patching
    import refusal_nn.plots as plots
    import refusal_nn.prompts as prompts
    import refusal_nn.report as report
    import refusal_nn.responses as responses
    import refusal_nn.runs as runs
    import refusal_nn.stats as stats
    import refusal_nn.store as store
    import refusal_nn.testing as testing
    import refusal_nn.tracing as tracing
    from refusal_nn.interventions import (
        ActivationAddition,
        DirectionalAblation,
        FunctionIntervention,
        MeanAblation,
        Patch,
        ZeroAblation,
    )
    from refusal_nn.models import load_model
    from refusal_nn.prompts import Pairs, Prompts, load_pairs, load_prompts
    from refusal_nn.responses import evaluate
    from refusal_nn.runs import Keeping, Run, record
    from refusal_nn.store import open_runs

__version__ = "0.1.0"

_ATTRIBUTES = {
    "interventions": (
        "ActivationAddition",
        "DirectionalAblation",
        "FunctionIntervention",
        "MeanAblation",
        "Patch",
        "ZeroAblation",
    ),
    "models": ("load_model",),
    "prompts": ("Pairs", "Prompts", "load_pairs", "load_prompts"),
    "responses": ("evaluate",),
    "runs": ("Keeping", "Run", "record"),
    "store": ("open_runs",),
}
"""Names that are here, too, by the module they are from; what else is public is a module."""

__all__ = [
    "ActivationAddition",
    "DirectionalAblation",
    "FunctionIntervention",
    "Keeping",
    "MeanAblation",
    "Pairs",
    "Patch",
    "Prompts",
    "Run",
    "ZeroAblation",
    "__version__",
    "attribution",
    "backends",
    "circuits",
    "contrasts",
    "demo",
    "directions",
    "errors",
    "evaluate",
    "interventions",
    "judges",
    "load_model",
    "load_pairs",
    "load_prompts",
    "models",
    "open_runs",
    "patching",
    "plots",
    "prompts",
    "record",
    "report",
    "responses",
    "runs",
    "save",
    "stats",
    "store",
    "testing",
    "tracing",
]


def save(
    data: xr.Dataset | xr.DataTree,
    path: str | Path,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a result as a complete run; see :func:`refusal_nn.store.save`."""
    # not a lazy name: nnsight mounts ``.save`` on object, which would be found first
    from refusal_nn import store

    return store.save(data, path, provenance)


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'refusal_nn' has no attribute {name!r}")
    for module, names in _ATTRIBUTES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"refusal_nn.{module}"), name)
            return value
    return import_module(f"refusal_nn.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
