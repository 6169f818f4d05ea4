"""``refusal-nn prompts``: what is asked, how it is labelled and split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from refusal_nn.cli._options import config_option, json_option, seed_option, together
from refusal_nn.cli._output import Table, show
from refusal_nn.cli._types import NewFile, Whole

HARMS = ("harmful", "harmless")
STYLES = ("toxic", "hard", "safe")
SPLITS = ("train", "val", "test")


def _pairs(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        left, _, right = value.partition("=")
        if not (left and right):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        pairs[left] = right
    return pairs


reading_options = together(
    click.option(
        "--like", metavar="SET", help="Read the file or folder as a copy of this known set."
    ),
    click.option(
        "--column",
        "columns",
        multiple=True,
        callback=_pairs,
        metavar="LABEL=COLUMN",
        help="Which column is which, e.g. text=goal; repeatable. Usual names are found without it.",
    ),
    click.option(
        "--label",
        "labels",
        multiple=True,
        callback=_pairs,
        metavar="VALUE=LABEL",
        help="What a value of the label column means, e.g. 1=harmful; repeatable.",
    ),
    click.option("--category", metavar="NAME", help="Category of every row."),
    click.option("--harm", type=click.Choice(HARMS), help="Harm of every row."),
    click.option("--style", type=click.Choice(STYLES), help="Style of every row."),
    click.option("--split", type=click.Choice(SPLITS), help="Split of every row."),
    click.option(
        "--duplicates",
        type=click.Choice(["error", "drop"]),
        help="A prompt that occurs again. Default: an error in files, dropped from hub sets.",
    ),
    seed_option,
)


@click.group(name="prompts")
def command() -> None:
    """List, show, analyse and build labelled prompt sets."""


@command.command(name="list")
@json_option
def prompts_list() -> None:
    """List the prompt sets known by name."""
    from refusal_nn.prompts import available

    rows = [asdict(known) for known in available()]
    show(rows, Table(rows, ["name", "place", "summary"]))


@command.command(name="show")
@click.argument("prompts")
@click.option("--category", multiple=True, help="Only this category; repeatable.")
@click.option("--harm", type=click.Choice(HARMS), help="Only these.")
@click.option("--style", type=click.Choice(STYLES), multiple=True, help="Only this; repeatable.")
@click.option("--split", type=click.Choice(SPLITS), multiple=True, help="Only this; repeatable.")
@click.option("-n", "--limit", type=Whole(min=1), metavar="N", help="A stratified sample of N.")
@seed_option
@json_option
def prompts_show(prompts: str, limit: int | None, seed: int, **labels: Any) -> None:
    """Show the prompts of PROMPTS with their labels.

    PROMPTS is a name or a file.

    \b
    Example usage:
      refusal-nn prompts show tiny-bench --style hard -n 5
    """
    from refusal_nn.prompts import load_prompts

    found = load_prompts(prompts)
    for label, values in labels.items():
        if values:
            found = found.select(**{label: values if isinstance(values, str) else list(values)})
    if limit is not None and limit < len(found):
        found = found.take(limit, seed=seed)
    rows = [
        {"prompt_id": key, **row} for key, row in zip(found.prompt_id, found.to_rows(), strict=True)
    ]
    columns = ("split", "category", "style", "text")
    document = {"name": found.name, "hash": found.hash, "prompts": rows}
    show(document, Table(rows, columns, empty="no prompt fits"))


@command.command(name="stats")
@click.argument("prompts")
@reading_options
@config_option
@json_option
def prompts_stats(prompts: str, **reading: Any) -> None:
    """Count PROMPTS by category, style and split, and warn of what would spoil an analysis.

    Nothing is refused here: overlapping splits and repeated prompts are reported.
    """
    from refusal_nn.prompts import load_prompts, stats

    table = stats(load_prompts(prompts, check=False, **_given(reading)))
    warnings = table.attrs["warnings"]
    # of whichever dims are left a frame is made, which types cannot say
    counts: Any = table["prompt_count"].transpose("category", "split", "style")
    by_style = counts.sum("split").to_pandas()[list(STYLES)]
    more = table[["category_count", "safe_ratio", "toxic_ratio"]].to_dataframe()
    categories = by_style.join(more.rename(columns={"category_count": "total"}))
    rows = categories.reset_index().to_dict("records")
    splits = counts.sum("category").to_pandas()[list(STYLES)].to_dict("index")
    ratios = ("overall_safe_ratio", "overall_toxic_ratio", "toxic_to_safe")
    overall = {name: float(table[name]) for name in ratios}
    names = {name: table.attrs[name] for name in ("prompts", "prompts_hash")}
    show(
        {**names, **overall, "splits": splits, "categories": rows, "warnings": warnings},
        Table(rows),
        _counts_table(splits),
        Table(list(overall.items()), ["overall", "value"]),
        notices=[f"warning: {warning}" for warning in warnings],
    )


@command.command(name="build")
@click.argument("source")
@click.argument("out", type=NewFile())
@reading_options
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is there.")
@config_option
@json_option
def prompts_build(source: str, out: Path, overwrite: bool, **reading: Any) -> None:
    """Write SOURCE to OUT (.jsonl) with every label spelled out and splits drawn.

    SOURCE is a name, a CSV, TSV, JSON or JSONL file, a folder, hub:OWNER/NAME, or several of these
    joined by +.

    \b
    Example usage:
      refusal-nn prompts build requests.csv prompts.jsonl --column text=goal --style toxic
    """
    from refusal_nn.prompts import build

    built = build(source, out, overwrite=overwrite, **_given(reading))
    counts = {
        split: {s: int(((built.split == split) & (built.style == s)).sum()) for s in STYLES}
        for split in built.splits
    }
    show(
        {"path": out, "hash": built.hash, "n": len(built), "counts": counts},
        _counts_table(counts),
        notices=[f"wrote {len(built)} prompts to {out}"],
    )


def _given(reading: dict[str, Any]) -> dict[str, Any]:
    """Options that were given; what was not is the library's default."""
    return {name: value for name, value in reading.items() if value not in (None, {})}


def _counts_table(counts: dict[str, dict[str, int]]) -> Table:
    """Prompts by split and style."""
    return Table([{"split": split, **by_style} for split, by_style in counts.items()])
