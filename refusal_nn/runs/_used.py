"""The prompts that made a table, carried along so that later prompts can be checked to be new."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.prompts import Prompts, check_disjoint

if TYPE_CHECKING:
    from collections.abc import Iterable

_DIM = "used_prompt"


def used(tables: Iterable[xr.Dataset]) -> xr.Dataset:
    """The prompts of tables over ``prompt`` (``text``, coord ``family``) or of earlier results.

    Returns
    -------
    xarray.Dataset
        ``used_text`` and ``used_family`` over ``used_prompt``: a dim of its own, because a run's
        groups share their dims.
    """
    texts: list[str] = []
    families: list[str] = []
    for table in tables:
        old = "used_text" in table
        texts += table["used_text" if old else "text"].values.tolist()
        families += table["used_family" if old else "family"].values.tolist()
    return xr.Dataset(
        {
            "used_text": (_DIM, np.array(texts, dtype=object)),
            "used_family": (_DIM, np.array(families, dtype=object)),
        }
    )


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
