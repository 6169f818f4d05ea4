"""A page as HTML or Markdown, by the templates beside this file."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from refusal_nn.plots import to_svg
from refusal_nn.report._escape import fence, markdown, paragraph
from refusal_nn.report._page import Page, Picture

_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]"
)
"""Controls, halves of pairs, and what turns the direction of the text after it, ours included."""


def to_html(page: Page) -> str:
    """One self-contained HTML document: styles and figures inside, no script, nothing loaded.

    Parameters
    ----------
    page : Page

    Returns
    -------
    str
    """
    from markupsafe import Markup

    figures = {
        # our own markup; matplotlib has escaped every label in it
        anchor: Markup(clean(to_svg(picture.figure, prefix=anchor, themed=True)))
        for anchor, picture in _pictures(page)
    }
    return clean(_template("page.html.j2").render(page=page, figures=figures))


def to_markdown(page: Page, *, figures: str = "figures") -> tuple[str, dict[str, str]]:
    """A Markdown document and its figures.

    Parameters
    ----------
    page : Page
    figures : str
        Folder that the document refers to its figures in.

    Returns
    -------
    text : str
    files : dict of str to str
        SVG by file name, to be written into that folder.
    """
    files = {
        f"{anchor}.svg": '<?xml version="1.0" encoding="utf-8"?>\n' + clean(to_svg(p.figure)) + "\n"
        for anchor, p in _pictures(page)
    }
    text = clean(_template("page.md.j2").render(page=page, folder=figures))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", files


def clean(text: str) -> str:
    """With a replacement for what XML forbids, terminals obey, or would show our words backwards."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def _pictures(page: Page) -> list[tuple[str, Picture]]:
    """Every figure with a name that is unique in the page."""
    return [
        (figure_anchor(section.anchor, block.name), block)
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Picture)
    ]


def figure_anchor(section: str, name: str) -> str:
    """Id of a figure: its section's study and its name."""
    study = re.match(r"s\d+-", section)
    return f"{study.group() if study else ''}{name}"


@cache
def _template(name: str) -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    html = name.endswith(".html.j2")
    environment = Environment(
        loader=PackageLoader("refusal_nn.report", "templates"),
        autoescape=html,  # Markdown has its own escaping, by filter `md`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(md=markdown, paragraph=paragraph, fence=fence)
    environment.globals.update(figure_anchor=figure_anchor)
    return environment.get_template(name)
