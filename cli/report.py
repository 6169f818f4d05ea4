"""``refusal-nn report``: runs to one page."""

from __future__ import annotations

from pathlib import Path

import click

from refusal_nn.cli._options import config_option, json_option, output_option, stores_option
from refusal_nn.cli._output import show

FORMATS = {"html": ".html", "markdown": ".md"}


@click.command(name="report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@output_option(help="The page. Default: report.html or report.md in the stores folder.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(list(FORMATS)),
    help="Default: by the ending of --output, else html.",
)
@click.option("--title", metavar="TEXT", help="Heading of the page. Default: names the model.")
@click.option(
    "--inputs/--no-inputs",
    default=True,
    show_default=True,
    help="Include the runs that these were made from.",
)
@stores_option
@config_option
@json_option
def command(
    runs: tuple[str, ...],
    output: Path | None,
    format_: str | None,
    title: str | None,
    inputs: bool,
    stores: Path,
) -> None:
    """Write a page about RUN..., each a name in the stores folder or a path.

    HTML is one self-contained file; Markdown has its figures in a folder beside it.

    \b
    Example usage:
      refusal-nn report direction-evaluate-tiny-refuser-1a2b3c4d
      refusal-nn report RUN --output study.md
    """
    from refusal_nn.report import read, write

    sources = read(runs, stores=stores, follow=inputs)
    target = output or stores / f"report{FORMATS[format_ or 'html']}"
    page = write(sources, target, format=format_, title=title)
    names = [source.name for source in sources]
    show({"report": page, "runs": names}, page, notices=[f"from {', '.join(names)}"])
