"""The prompts that made a table, carried along so that later prompts can be checked to be new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.prompts import Prompts, check_disjoint

if TYPE_CHECKING:
    from collections.abc import Iterable

USED = "used"
"""Group of a run that holds them."""

_DIM = "used_prompt"
_VARIABLES = ("used_text", "used_family")


def used(tables: Iterable[xr.Dataset]) -> xr.Dataset:
    """The prompts of tables over ``prompt`` (``text``, coord ``family``) or of earlier results.

    Returns
    -------
    xarray.Dataset
        ``used_text`` and ``used_family`` over ``used_prompt``: a dim of its own, because a run's
        groups share their dims. A table that says neither is left out.
    """
    texts: list[str] = []
    families: list[str] = []
    for table in tables:
        for prefix in ("used_", ""):
            if f"{prefix}text" in table:
                texts += table[f"{prefix}text"].values.tolist()
                families += table[f"{prefix}family"].values.tolist()
    return xr.Dataset(
        {
            "used_text": (_DIM, np.array(texts, dtype=object)),
            "used_family": (_DIM, np.array(families, dtype=object)),
        }
    )


def split_used(groups: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """Groups of a run with the prompts used before, where the root holds them, in a group of their own."""
    root = groups["/"]
    if not set(_VARIABLES) <= set(root):
        return groups
    return {
        **groups,
        "/": root.drop_vars(_VARIABLES),
        USED: root[list(_VARIABLES)].drop_attrs(deep=False),
    }


def check_new(prompts: Prompts, table: xr.Dataset, *, role: str) -> None:
    """Make sure that prompts share no text and no family with those a table was made from.

    Parameters
    ----------
    prompts : Prompts
        What is about to be used.
    table : xarray.Dataset
        Holds ``text(prompt)`` or ``used_text(used_prompt)``; a table with neither is not checked.
    role : str
        What the table's prompts were used for, for the message.

    Raises
    ------
    PromptError
        If they overlap.
    """
    if "text" not in table and "used_text" not in table:
        return
    seen = used([table])
    n = seen.sizes[_DIM]
    known = Prompts(
        {
            "text": seen["used_text"].values.tolist(),
            "family": seen["used_family"].values.tolist(),
            # the check looks at text and family only
            "category": [role] * n,
            "harm": ["harmless"] * n,
            "style": ["safe"] * n,
            "split": ["train"] * n,
            "source": [role] * n,
        },
        name=f"the {role} prompts",
    )
    check_disjoint(known, prompts)
