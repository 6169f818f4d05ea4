"""Results whose every text tries to act: to run a script, to load something, to leave its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from tests.plots import mechanism
from tests.report import synthetic

MARK = "rn-mark"
"""Stands in every payload, so that a page can be asked how many of them it shows."""

KEPT = {"style", "harm", "site", "src", "dst", "edge", "dropped_by", "role", "node"}
"""Labels by which results are read: with another value, what they hold is of no analysis of ours."""

KEPT_VALUES = {*synthetic.CONDITIONS, "sufficiency", "necessity"}


def payload(url: str) -> str:
    """A text with the ways of acting that HTML, SVG, CSS, Markdown, templates and links have."""
    run = f"window.ran=1;alert(1);fetch('{url}/js')"
    return (
        f"{MARK} </title></style></text></svg></code></pre><script>{run}</script>"
        f'<img src="{url}/img" onerror="{run}"><svg onload="{run}"><image href="{url}/svg"/></svg>'
        f'"\'` onmouseover="{run}" style="background:url({url}/css)" ]]> --> <!-- '
        f"<link rel=stylesheet href={url}/link><iframe src={url}/frame></iframe>"
        f"<meta http-equiv=refresh content='0;url={url}/meta'><base href={url}/>"
        f"<style>@import '{url}/import';</style>{{{{ 7*7 }}}} {{% raw %}} $x^2$ $\\frac{{$ "
        f"[l](javascript:{run}) ![i]({url}/md) <{url}/auto> {url}/bare www.example.invalid a@b.invalid "
        f"[r]: {url}/ref |cell| **bold** # head\n\n```\n<script>{run}</script>\n\n    code\n---\n"
        f"&lt;script&gt; &#60;b&#62; \x1b]0;title\x07\x9b2J\x00 \u202e\u2028 \U0001f600 \ufffe"
    )


def attacked(results: xr.Dataset | xr.DataTree, text: str) -> xr.DataTree:
    """The same results, with every text in values, labels and attrs followed by another."""
    tree = results if isinstance(results, xr.DataTree) else xr.DataTree(results)
    return xr.DataTree.from_dict(
        {node.path: _dataset(node.to_dataset(), text) for node in tree.subtree}
    )


def runs() -> dict[str, Callable[[], xr.Dataset | xr.DataTree]]:
    """One result of every kind that a report shows."""
    return {
        "direction-extract": synthetic.candidate_table,
        "direction-score": synthetic.score_table,
        "direction-select": synthetic.selection_table,
        "direction-evaluate": lambda: synthetic.evaluation(per_style=4),
        **mechanism.RUNS,
    }


def _dataset(data: xr.Dataset, text: str) -> xr.Dataset:
    changed = {
        name: (array.dims, _values(array.values, text))
        for name, array in data.variables.items()
        if array.dtype.kind in "OUT" and name not in KEPT
    }
    made = data.assign_coords({k: v for k, v in changed.items() if k in data.coords})
    made = made.assign({k: v for k, v in changed.items() if k not in data.coords})
    for array in made.variables.values():
        array.attrs = {**_attrs(array.attrs, text), "units": text, "long_name": text}
    return made.assign_attrs(_attrs(data.attrs, text))


def _values(values: np.ndarray, text: str) -> np.ndarray:
    flat = [v if v in KEPT_VALUES else f"{v}{text}" for v in values.ravel().astype(object)]
    made = np.empty(len(flat), dtype=object)
    made[:] = flat
    return made.reshape(values.shape)


def _attrs(attrs: dict[Any, Any], text: str) -> dict[Any, Any]:
    return {
        key: value if key == "analysis" else _plain(value, text) for key, value in attrs.items()
    }


def _plain(value: Any, text: str) -> Any:
    if isinstance(value, str):
        return f"{value}{text}"
    if isinstance(value, dict):
        return {
            _plain(k, text) if k not in _FIELDS else k: _plain(v, text) for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(v, text) for v in value]
    return value


_FIELDS = {"run", "hash", "prompts", "pairs"}

SHORT = (
    "<script>window.ran=1</script>",
    "<svg onload=window.ran=1>",
    "</text></svg><img src=x:y>",
    "\"'><b onclick=window.ran=1>",
    "]]><script>window.ran=1</script>",
    "${7*7} {{7*7}} $x_1$ $\\frac{$",
)
"""Payloads that are shown whole where a figure has room for few characters."""
