"""``refusal-nn demo``: the whole story on the embedded model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from refusal_nn.cli._inputs import keeping
from refusal_nn.cli._options import analysis_options, take_loading
from refusal_nn.cli._output import notice, print_json, print_table


@click.command(name="demo")
@analysis_options(model="tiny-refuser", prompts="tiny-bench")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="Length of the completions.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.html",
    help="The page; default: demo.html in the stores folder.",
)
def command(
    model: str,
    prompts: str,
    stores: Path,
    name: str | None,
    resume: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find, choose and test a refusal direction, and write a page about it.

    Runs on a laptop, offline, in about two minutes. What is already complete is not computed again.
    """
    from refusal_nn.demo import run_demo
    from refusal_nn.models import load_model
    from refusal_nn.prompts import load_prompts

    loading = take_loading(options)
    loaded = load_model(model, **loading)
    with keeping(stores, name, resume) as where:
        done = run_demo(loaded, load_prompts(prompts), where, **options)
    summary = done.summary()
    if as_json:
        print_json(summary)
        return
    at = summary["selected"]
    click.echo(
        f"{summary['model']}: layer {at['layer']}, position {at['position']} "
        f"(bypass {at['bypass']:.2f}, induce {at['induce']:.2f}, KL {at['kl']:.3f})\n"
    )
    rows = [
        (
            group,
            name,
            _percent(rate["rate"]),
            _interval(rate),
            rate["n"],
            _percent(rate["coherent"]),
        )
        for group, rates in {
            **summary["refusal_rate"],
            "controls": summary["controls"],
        }.items()
        for name, rate in rates.items()
    ]
    print_table(["prompts", "condition", "refused", "95 % interval", "n", "coherent"], rows)
    click.echo()
    notice(f"runs: {', '.join(Path(run).name for run in summary['runs'])}")
    notice(f"page: {summary['report']}")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(rate: dict[str, Any]) -> str:
    return f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"
