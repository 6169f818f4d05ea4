"""The whole story on one model: find, choose and test a refusal direction, and report it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_nn import report
from refusal_nn.directions import evaluate_selected, extract, score, select
from refusal_nn.prompts import check_disjoint
from refusal_nn.responses import rate_of
from refusal_nn.runs import record

if TYPE_CHECKING:
    import xarray as xr

    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts
    from refusal_nn.runs import Keeping, Run

STYLES = {"harmful": "toxic", "harmless": "safe", "hard": "hard"}
"""What the summary calls a class, and the style of its prompts."""

SHOWN = {
    "harmful": ("baseline", "ablation"),
    "harmless": ("baseline", "addition"),
    "hard": ("baseline",),
}
"""Conditions of the summary, by class."""


@dataclass(frozen=True)
class Demo:
    """What the demo made: its runs, in order, and the page about them."""

    runs: tuple[Run, ...]
    report: Path

    def summary(self) -> dict[str, Any]:
        """The headline numbers as plain data, each rate with its interval.

        Classes that the test prompts lack are left out.
        """
        selected, evaluated = self.runs[2].attrs, self.runs[3].tree["rates"]
        table = evaluated.to_dataset().load()
        rates = {group: _rates(table, group, names) for group, names in SHOWN.items()}
        by_category = {
            str(category): _rates(
                table.sel(category=category), "harmful", ("baseline", "ablation"), "category_"
            )
            for category in table["category"].values
        }
        return {
            "model": selected["model"],
            "runs": [str(run.path) for run in self.runs],
            "report": str(self.report),
            "selected": {
                key: selected[key] for key in ("layer", "position", "bypass", "induce", "kl")
            },
            "refusal_rate": {group: found for group, found in rates.items() if found},
            "controls": {
                **_rates(table, "harmful", ("random_ablation",)),
                **_rates(table, "harmless", ("random_addition",)),
            },
            "per_category": {
                category: found
                for category, found in by_category.items()
                if found and found["baseline"]["n"]
            },
        }


def run_demo(
    model: Model,
    prompts: Prompts,
    keeping: Keeping,
    *,
    seed: int = 0,
    batch_size: int | None = None,
    max_new_tokens: int = 64,
    output: Path | None = None,
) -> Demo:
    """Extract on train, score and select on val, evaluate on test, write the page.

    Parameters
    ----------
    model : Model
    prompts : Prompts
        With splits train, val and test, which must be disjoint.
    keeping : Keeping
        A name, if given, is the beginning of each run's name.
    seed, batch_size, max_new_tokens
        As in the steps.
    output : Path, optional
        The page; default ``demo.html`` in the stores folder.

    Raises
    ------
    WorkError
        If no candidate direction is admissible.
    """
    check_disjoint(prompts)

    def step(verb: str, function: Callable[..., Any], *args: Any, **options: Any) -> Run:
        name = f"{keeping.name}-{verb}" if keeping.name else None
        # a resumed demo may have stopped before this step began
        return record(function, *args, keep=replace(keeping, name=name, resume=False), **options)

    speed = {"batch_size": batch_size}
    candidates = step("extract", extract, model, prompts.train, seed=seed, **speed)
    # every score of every candidate: the page shows the whole table
    scores = step("score", score, model, candidates, prompts.val, exhaustive=True, **speed)
    selected = step("select", select, scores)
    asked = {"max_new_tokens": max_new_tokens, "seed": seed, **speed}
    evaluated = step("evaluate", evaluate_selected, model, selected, prompts.test, **asked)
    runs = (candidates, scores, selected, evaluated)
    page = output or Path(keeping.stores) / "demo.html"
    report.write_html([run.path for run in runs], page)
    return Demo(runs, page)


def _rates(
    table: xr.Dataset, group: str, names: Sequence[str], prefix: str = ""
) -> dict[str, dict[str, Any]]:
    """The rates of a class under some conditions; empty where there is no such prompt."""
    if STYLES[group] not in table["style"].values:
        return {}
    at = table.sel(style=STYLES[group])
    return {name: rate_of(at.sel(intervention=name), prefix) for name in names}
