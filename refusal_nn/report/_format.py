"""Numbers as the report writes them."""

from __future__ import annotations

import math


def percent(share: float) -> str:
    """A share as ``98.3 %``; a dash where there is none."""
    if not math.isfinite(share):
        return "–"
    return f"{_tidy(100 * share)} %"


def interval(share: float, low: float, high: float) -> str:
    """A share with its interval: ``98.3 % [91.1, 99.7]``."""
    if not math.isfinite(share):
        return "–"
    return f"{_tidy(100 * share)} % [{_tidy(100 * low)}, {_tidy(100 * high)}]"


def number(value: float, low: float = math.nan, high: float = math.nan, *, digits: int = 3) -> str:
    """A number with its interval, if any: ``0.930 [0.891, 0.962]``; a dash where there is none.

    Three decimals, as at two a share of .8994 would read as the .9 it misses.
    """
    if not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if math.isfinite(low) and math.isfinite(high):
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text.replace("-", "−")


def points(value: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    text = _tidy(100 * value)
    return text if value <= 0 or text == "0" else f"+{text}"


def nats(value: float) -> str:
    """A score in nats, to three significant digits; a dash where it was not measured."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace("-", "−")
    return number(value, digits=3 if abs(value) < 1 else 2)


def p_value(p: float) -> str:
    """A p-value: ``0.010``, ``0.0001``; a dash where there is none."""
    if not math.isfinite(p):
        return "–"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.4f}" if p >= 0.0001 else f"{p:.1e}".replace("-", "−")


def minus(number: int) -> str:
    """An integer with a true minus sign."""
    return str(number).replace("-", "−")


def place(layer: int, position: int) -> str:
    """``layer 4, position −1``."""
    return f"layer {layer}, position {minus(int(position))}"


def plural(n: int, noun: str) -> str:
    """``1 prompt``, ``2 prompts``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(words: list[str]) -> str:
    """``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _tidy(number: float) -> str:
    text = f"{number:.1f}"
    text = text.removesuffix(".0")
    return "0" if text == "-0" else text.replace("-", "−")
