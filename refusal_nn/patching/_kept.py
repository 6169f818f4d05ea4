"""Patching with what the patched model says: the analyses that commands run, and their tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from refusal_nn.contrasts import Metric
from refusal_nn.models.sites import WRITES
from refusal_nn.patching._exchange import INTERCHANGES, Swap, Variant
from refusal_nn.patching._generate import generate
from refusal_nn.patching._positions import positions as patch_all_positions
from refusal_nn.patching._refusal_heads import refusal_heads
from refusal_nn.patching._sets import Head, head_name, heads_where, of_heads
from refusal_nn.runs import analysis
from refusal_nn.store import MemoryRecorder, Recorder

if TYPE_CHECKING:
    import pandas as pd

    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs

_SHARE = {"": "recovery", "_low": "low", "_high": "high"}
"""What a row calls a recovery and the ends of its interval, by the end of the variable's name."""


@analysis("patch-positions", splits={"pairs": "test"}, section="refusal_nn.report._patching:part")
def patch_positions(
    model: Model,
    pairs: Pairs,
    *,
    metric: Metric | None = None,
    sites: Sequence[str] = WRITES,
    interchange: str = "sufficiency",
    cumulative: bool = False,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    screen: bool = True,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """Patching over positions, and what the model says under the strongest patch of each site.

    Parameters
    ----------
    sites : sequence of {"resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post"}
        Where to patch.
    interchange : {"sufficiency", "necessity"}
        sufficiency: into the harmless prompt's run; necessity: into the harmful one's.
    cumulative : bool
        Patch all blocks up to each layer at once.
    positions : sequence of int, optional
        Positions from the prompt's end, such as -3,-1.
    layers : sequence of int, optional
        Blocks, such as 3,4,5; default all.
    screen : bool
        With refusal-log-odds: use only pairs whose prompts the model refuses and answers.
    max_new_tokens : int in [0, inf)
        Length of the completions of patched runs; 0: none.
    model, pairs, ..., recorder
        See :func:`refusal_nn.patching.positions`.

    Returns
    -------
    xarray.DataTree
        At the root as :func:`refusal_nn.patching.positions`; in group ``completions``, on the same
        pairs, as :func:`refusal_nn.patching.generate`.

    Raises
    ------
    PromptError, RequestError
        As :func:`refusal_nn.patching.positions`.
    """
    rec = recorder if recorder is not None else MemoryRecorder()
    found = patch_all_positions(
        model,
        pairs,
        sites=sites,
        interchange=interchange,
        cumulative=cumulative,
        metric=metric,
        positions=positions,
        layers=layers,
        screen=screen,
        batch_size=batch_size,
        seed=seed,
        recorder=rec,
    )
    groups = {"/": found}
    if max_new_tokens:
        groups["/completions"] = generate(
            model,
            kept_pairs(pairs, found),
            strongest(found),
            interchange=interchange,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            recorder=rec,
        )
    return xr.DataTree.from_dict(groups)


@analysis("patch-heads", section="refusal_nn.report._patching:part")
def patch_heads(
    model: Model,
    pairs: Pairs,
    *,
    metric: Metric | None = None,
    alpha: float = 0.05,
    min_effect: float = 0.01,
    correction: str = "max-t",
    max_heads: int = 16,
    n_controls: int = 99,
    positions: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    screen: bool = True,
    max_new_tokens: int = 32,
    batch_size: int | None = None,
    seed: int = 0,
    recorder: Recorder | None = None,
) -> xr.DataTree:
    """The heads that decide to refuse, and what the model says with all of them exchanged.

    Parameters
    ----------
    alpha : float in (0, 1)
        Level of the tests.
    min_effect : float in [0, 1)
        Least share of the difference between the prompts that a head must carry.
    correction : {"max-t", "holm", "bh"}
        For the number of heads tested.
    max_heads : int in [1, inf)
        Most heads of a set grown by joint effect.
    n_controls : int in [0, inf)
        Random sets of as many other heads.
    positions : sequence of int, optional
        Positions from the prompt's end, such as -3,-1.
    layers : sequence of int, optional
        Blocks, such as 3,4,5; default all.
    screen : bool
        With refusal-log-odds: use only pairs whose prompts the model refuses and answers.
    max_new_tokens : int in [0, inf)
        Length of the completions of patched runs; 0: none.
    model, pairs, ..., recorder
        See :func:`refusal_nn.patching.refusal_heads`.

    Returns
    -------
    xarray.DataTree
        As :func:`refusal_nn.patching.refusal_heads`; where there are refusal heads, groups
        ``completions_sufficiency`` and ``completions_necessity`` on the test pairs, as
        :func:`refusal_nn.patching.generate`.

    Raises
    ------
    PromptError, RequestError
        As :func:`refusal_nn.patching.refusal_heads`.
    """
    rec = recorder if recorder is not None else MemoryRecorder()
    tree = refusal_heads(
        model,
        pairs,
        metric=metric,
        positions=positions,
        layers=layers,
        alpha=alpha,
        min_effect=min_effect,
        correction=correction,
        max_heads=max_heads,
        n_controls=n_controls,
        screen=screen,
        batch_size=batch_size,
        seed=seed,
        recorder=rec,
    )
    heads = heads_of(tree.to_dataset())
    if not heads or not max_new_tokens:
        return tree
    test = kept_pairs(pairs.test, tree["test"].to_dataset())
    said = {
        f"completions_{interchange}": generate(
            model,
            test,
            {"refusal heads": of_heads(heads, positions)},
            interchange=interchange,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            recorder=rec,
            stage=f"completions_{interchange}",
        )
        for interchange in INTERCHANGES
    }
    return tree.assign({name: xr.DataTree(group) for name, group in said.items()})


def strongest(table: xr.Dataset) -> dict[str, Variant]:
    """The patch of each site that recovers most on average, by a readable name.

    Parameters
    ----------
    table : xarray.Dataset
        From :func:`refusal_nn.patching.positions`.
    """
    out: dict[str, Variant] = {}
    cumulative = table.attrs["cumulative"]
    for site in table["site"].values:
        mean = table["recovery_mean"].sel(site=site)
        at = mean.isel(mean.argmax(["layer", "position"]))
        layer, position = int(at["layer"]), int(at["position"])
        upto = [int(b) for b in table["layer"].values if b <= layer] if cumulative else [layer]
        name = f"{site} {'up to ' if cumulative else ''}layer {layer}, token {position}"
        out[name] = tuple(Swap(str(site), b, (position,)) for b in upto)
    return out


def kept_pairs(pairs: Pairs, table: xr.Dataset) -> Pairs:
    """The pairs of a set that a table is about, in its order."""
    place = {pair: k for k, pair in enumerate(pairs.pair_id)}
    return pairs[np.array([place[pair] for pair in table["prompt_id"].values], dtype=int)]


def heads_of(table: xr.Dataset) -> list[Head]:
    """The refusal heads of a table, as (layer, head)."""
    return heads_where(table["refusal_head"])


def head_rows(table: xr.Dataset) -> list[dict[str, Any]]:
    """The refusal heads of a ``patch-heads`` run as rows of plain values, by layer.

    Parameters
    ----------
    table : xarray.Dataset
        Root of the run.
    """
    flat = table.stack(found=("layer", "head"), create_index=False)
    flat = flat.isel(found=flat["refusal_head"].values)
    shares = flat["recovery_mean"].to_dataset("interchange")
    columns = ["role", "found_by", "band", *shares, "stability", "direct_attribution"]
    frame = flat.drop_dims("interchange").assign(shares)[columns].to_dataframe()[columns]
    frame.insert(0, "head", [head_name(head) for head in heads_of(table)])
    return _plain(frame)


def joint_rows(table: xr.Dataset) -> list[dict[str, Any]]:
    """What the refusal heads of a ``patch-heads`` run do together, a row a direction."""
    names = {f"joint_recovery{end}": name for end, name in _SHARE.items()} | {"control_p": "p"}
    random = table["control_recovery"].mean("draw") if "draw" in table.dims else np.nan
    said = table[[*names]].rename(names)
    said = said.assign(random=random, n_random=table.sizes.get("draw", 0))
    return _plain(said.to_dataframe().reset_index(names="direction"))


def strongest_rows(table: xr.Dataset, n: int) -> list[dict[str, Any]]:
    """The ``n`` patches of a ``patch-positions`` run that recover most, as rows of plain values."""
    names = {f"recovery_mean{end}": name for end, name in _SHARE.items()}
    place = ["site", "layer", "position"]
    flat = table[[*names]].rename(names).stack(patch=place, create_index=False)
    order = np.argsort(-flat["recovery"].values, kind="stable")[:n]
    frame = flat.isel(patch=order).to_dataframe()
    return _plain(frame[[*place, *names.values()]])


def _plain(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(k): value for k, value in row.items()} for row in rows.to_dict("records")]
