"""The whole story on one model: find, choose and test a refusal direction, and report it."""

from __future__ import annotations

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
        return {
            "model": selected["model"],
            "runs": [str(run.path) for run in self.runs],
            "report": str(self.report),
            "selected": {
                key: selected[key] for key in ("layer", "position", "bypass", "induce", "kl")
            },
            "refusal_rate": {
                group: _rates(table, group, names)
                for group, names in SHOWN.items()
                if _has(table, group)
            },
            "controls": {
                **_rates(table, "harmful", ("random_ablation",)),
                **_rates(table, "harmless", ("random_addition",)),
            },
            "per_category": {
                str(category): {
                    name: rate_of(
                        table.sel(intervention=name, style="toxic", category=category), "category_"
                    )
                    for name in ("baseline", "ablation")
                }
                for category in table["category"].values
                if _has(table, "harmful")
                and int(
                    table["category_refusal_rate_n"].sel(
                        intervention="baseline", style="toxic", category=category
                    )
                )
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

    def kept(step: str) -> Keeping:
        # a resumed demo may have stopped before this step began
        name = f"{keeping.name}-{step}" if keeping.name else None
        return replace(keeping, name=name, resume=False)

    candidates = record(
        extract, model, prompts.train, batch_size=batch_size, seed=seed, keep=kept("extract")
    )
    # every score of every candidate: the page shows the whole table
    scores = record(
        score,
        model,
        candidates,
        prompts.val,
        exhaustive=True,
        batch_size=batch_size,
        keep=kept("score"),
    )
    selected = record(select, scores, keep=kept("select"))
    evaluated = record(
        evaluate_selected,
        model,
        selected,
        prompts.test,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        keep=kept("evaluate"),
    )
    runs = (candidates, scores, selected, evaluated)
    page = output or Path(keeping.stores) / "demo.html"
    report.write_html([run.path for run in runs], page)
    return Demo(runs, page)


def _has(table: xr.Dataset, group: str) -> bool:
    return STYLES[group] in table["style"].values


def _rates(table: xr.Dataset, group: str, names: tuple[str, ...]) -> dict[str, Any]:
    if not _has(table, group):
        return {}
    return {
        name: rate_of(table.sel(intervention=name, style=STYLES[group], drop=True))
        for name in names
    }
