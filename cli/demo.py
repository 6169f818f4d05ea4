"""``refusal-nn demo``: the whole story on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refusal_nn.cli._inputs import keeping
from refusal_nn.cli._options import (
    PROMPTS,
    batch_size_option,
    config_option,
    json_option,
    loading_options,
    model_option,
    output_option,
    run_options,
    seed_option,
    take_loading,
)
from refusal_nn.cli._output import Table, show
from refusal_nn.cli._types import Whole


@click.command(name="demo")
@model_option(default="tiny-refuser", show_default=True)
@loading_options
@click.option("--prompts", default="tiny-bench", show_default=True, metavar="PROMPTS", help=PROMPTS)
@batch_size_option
@seed_option
@run_options
@config_option
@json_option
@click.option(
    "--max-new-tokens",
    type=Whole(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Length of the completions.",
)
@output_option(metavar="FILE.html", help="The page; default: demo.html in the stores folder.")
def command(
    model: str, prompts: str, stores: Path, name: str | None, resume: bool, **options: Any
) -> None:
    """Find, choose and test a refusal direction, and write a page about it.

    Runs on a laptop, offline, in about two minutes. What is already complete is not computed again.
    """
    from refusal_nn.demo import run_demo
    from refusal_nn.models import load_model
    from refusal_nn.prompts import load_prompts

    loaded = load_model(model, **take_loading(options))
    with keeping(stores, name, resume) as where:
        done = run_demo(loaded, load_prompts(prompts), where, **options)
    summary = done.summary()
    at = summary["selected"]
    rows = [
        {
            "prompts": group,
            "condition": condition,
            "refused": _percent(rate["rate"]),
            "95 % interval": f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}",
            "n": rate["n"],
            "coherent": _percent(rate["coherent"]),
        }
        for group, rates in [*summary["refusal_rate"].items(), ("controls", summary["controls"])]
        for condition, rate in rates.items()
    ]
    show(
        summary,
        f"{summary['model']}: layer {at['layer']}, position {at['position']} "
        f"(bypass {at['bypass']:.2f}, induce {at['induce']:.2f}, KL {at['kl']:.3f})",
        Table(rows),
        "",
        notices=[
            f"runs: {', '.join(Path(run).name for run in summary['runs'])}",
            f"page: {summary['report']}",
        ],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
