"""How figures look, and how one is written: the same bytes for the same data.

Text stays text in the SVG, so that it can be searched, copied and set in the font of the page.
Colours of categories are those of Okabe and Ito, told apart by every kind of colour vision.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_nn.errors import RequestError
from refusal_nn.store._disk import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches: the text width of a page."""

LONGEST_LABEL = 40
"""Characters of a label, more than our own have: one of 1,000 would leave no room for the data."""

HIGHEST = 200.0
"""Inches: more than anybody looks at, and hours to draw."""

INK, MUTED, LINE, EMPTY = "#1f2328", "#59636e", "#d4dae0", "#e3e6ea"
"""Text; secondary text; rules; the colour of a value that was not measured."""

THEMED = {INK: "ink", MUTED: "muted", LINE: "line", EMPTY: "empty"}
"""Colours a page may override, with the name of its CSS variable."""

CONDITION_COLOURS = {
    "baseline": MUTED,
    "ablation": "#0072B2",
    "addition": "#D55E00",
    "random_ablation": "#56B4E9",
    "random_addition": "#E69F00",
}
OTHER_COLOURS = ("#009E73", "#CC79A7", "#0072B2", "#D55E00", "#56B4E9", "#E69F00")

STYLE_COLOURS = {"toxic": "#D55E00", "hard": "#0072B2", "safe": "#009E73"}
STYLE_LINES = {"toxic": "-", "hard": (0, (4, 1.5)), "safe": (0, (1, 1))}
STYLE_NAMES = {
    "toxic": "harmful (toxic)",
    "hard": "harmless, looks harmful (hard)",
    "safe": "harmless (safe)",
}

_TICKS = {"color": MUTED, "labelcolor": INK, "labelsize": 8, "major.width": 0.7}

_PARAMETERS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # a category called $x$ is not a formula
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    **{f"{axis}tick.{name}": value for axis in "xy" for name, value in _TICKS.items()},
    "legend.fontsize": 8,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "refusal_nn",
}

_FONTS = "system-ui, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's parameters set to ours for the block, whatever the user's are."""
    import matplotlib as mpl

    # these belong to the process, not to a figure; setting them switches backends or warns
    process = ("backend", "interactive", "toolbar")
    defaults = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith(process)}
    # defaults, not the caller's settings: a figure must not depend on who draws it
    with mpl.rc_context(defaults), warnings.catch_warnings():
        # text stays text, so it is the reader's fonts that must have the glyph
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        mpl.rcParams.update(_PARAMETERS)  # type: ignore[arg-type]
        yield


def new_figure(height: float) -> Figure:
    """An empty page-wide figure, bound to no window system and to no global state.

    Raises
    ------
    RequestError
        If it would be higher than can be drawn.
    """
    if height > HIGHEST:
        raise RequestError(
            f"a figure of these results would be {height:.0f} inches high, and {HIGHEST:.0f} is the "
            "most; select fewer rows."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def condition_colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each condition: fixed for the known ones, the palette in order for others."""
    others = [n for n in names if n not in CONDITION_COLOURS]
    return CONDITION_COLOURS | dict(zip(others, cycle(OTHER_COLOURS), strict=False))


def readable(name: str) -> str:
    """``random_ablation`` as a reader wants it: ``random ablation``."""
    return str(name).replace("_", " ")


def fitted(label: str) -> str:
    """A label on one line, no longer than a figure has room for."""
    text = " ".join(str(label).split())
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"


def to_svg(figure: Figure, *, prefix: str = "", themed: bool = False) -> str:
    """A figure as an ``<svg>`` element.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    prefix : str
        Put before every id, so that several figures can stand in one page.
    themed : bool
        Without background, and with the colours of text and rules as CSS variables ``--ink``,
        ``--muted``, ``--line`` and ``--empty`` that a page may set; otherwise on white.

    Returns
    -------
    str
        The same for the same data: no date, no random id, no metadata, nothing loaded from elsewhere.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(
            buffer, format="svg", transparent=themed, metadata={"Date": None, "Creator": None}
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # a <style> element in one figure would apply to the whole page
    svg = re.sub(
        r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL
    )
    svg = svg.replace("<svg ", '<svg style="stroke-linejoin: round; stroke-linecap: butt" ', 1)
    svg = svg.replace("'DejaVu Sans'", _FONTS)
    if prefix:
        svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
        svg = re.sub(r'(url\(#|xlink:href="#)', rf"\g<1>{prefix}-", svg)
    if themed:
        for colour, name in THEMED.items():
            # only inside style attributes: a presentation attribute cannot hold var()
            svg = svg.replace(f": {colour}", f": var(--{name}, {colour})")
    return svg


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as a file, by its ending: ``.svg``, ``.png`` or ``.pdf``.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    path : str or Path
        An earlier file there is replaced, whole or not at all.

    Returns
    -------
    Path
        The file; the same bytes for the same figure.

    Raises
    ------
    RequestError
        If the ending is another, or the file cannot be written.
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png", "pdf"):
        raise RequestError(f"cannot draw {target.name!r}; end the file in .svg, .png or .pdf.")
    if kind == "svg":
        data = f'<?xml version="1.0" encoding="utf-8"?>\n{to_svg(figure)}\n'.encode()
    else:
        buffer = io.BytesIO()
        dated = {"CreationDate": None} if kind == "pdf" else {"Software": None}
        with style():
            figure.savefig(buffer, format=kind, dpi=200, metadata=dated)
        data = buffer.getvalue()
    try:
        write_atomically(target, data)
    except OSError as error:
        raise RequestError(
            f"drawing {str(target)!r} cannot be written ({error.strerror or error}); choose another "
            "file."
        ) from error
    return target
