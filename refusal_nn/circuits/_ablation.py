"""What excluded edges carry: the corrupted partner's values, a mean, or zero."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from refusal_nn.circuits._requests import Means, ask_sources
from refusal_nn.circuits._variables import SUMS
from refusal_nn.errors import RequestError
from refusal_nn.runs._batches import batches_of, rows_asked
from refusal_nn.tracing import Answers, Passes, Work, pad

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect

ABLATIONS = ("resample", "mean", "zero")
"""Of edges: values of the pair's corrupted prompt, position by position; their mean over the corrupted
discovery prompts, by position from the end; nothing."""


def means_of(
    model: Model, discovery: Pairs | None, batch_size: int | None, recorder: Recorder
) -> Means:
    """Means over the corrupted discovery prompts, by position from the end, as far as one reaches.

    Returns
    -------
    dict
        By name, a tensor a layer: ``input`` (one) and ``mlp`` ``[1, token, d_model]``, ``z`` ``[1,
        token, head, d_head]``, aligned at the last token.

    Raises
    ------
    RequestError
        If there are no discovery pairs.
    """
    if discovery is None or not len(discovery):
        raise RequestError("mean ablation needs the discovery pairs its means are taken over.")
    rows = model.chat.tokens(discovery.corrupted.texts)
    size = rows_asked(model, batch_size)
    # rows of one length share a block: sums over a padded batch would count the padding
    groups: list[list[list[int]]] = []
    for length in sorted({len(row) for row in rows}):
        same = [row for row in rows if len(row) == length]
        groups += [same[i : i + size] for i in range(0, len(same), size)]
    arch, width = model.arch, len(groups[-1][0])
    coords = {
        "block": np.arange(len(groups)),
        "layer": np.arange(arch.n_layers),
        "position": np.arange(-width, 0),
        "head": np.arange(arch.n_heads),
    }
    sizes = {dim: len(values) for dim, values in coords.items()}
    sizes |= {"d_model": arch.d_model, "d_head": arch.d_head}
    sums = {spec.name: (spec.dims, np.zeros([sizes[d] for d in spec.dims])) for spec in SUMS}
    template = xr.Dataset(sums, coords=coords)
    batches = batches_of(len(groups), 1, "block")

    def batch(i: int, work: Work) -> Collect:
        asked = ask_sources(work, pad(groups[i], model.pad_token), total=True)
        here = {"block": 0, "position": slice(-len(groups[i][0]), None)}

        def collect(answers: Answers) -> xr.Dataset:
            part = template.isel(batches[i]).copy(deep=True)
            for name in part:
                part[name][here] = answers[asked][str(name).removesuffix("_sum")].numpy()
            return part

        return collect

    found = recorder.stage("means", template, batches, Passes(model, batch)).sum("block")
    reach = [sum(len(row) >= back for row in rows) for back in range(width, 0, -1)]
    out: Means = {}
    for name, mean in (found / xr.DataArray(reach, dims="position")).items():
        layers = mean.values if "layer" in mean.dims else mean.values[None]
        # tensors of their own: a view ships with all that it is a view of
        out[str(name).removesuffix("_sum")] = [torch.tensor(layer)[None] for layer in layers]
    return out
