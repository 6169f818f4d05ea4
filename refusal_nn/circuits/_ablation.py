"""What excluded edges carry: the corrupted partner's values, a mean, or zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr

from refusal_nn.circuits._requests import Means, ask_sources
from refusal_nn.errors import PromptError, RequestError
from refusal_nn.runs._batches import rows_asked
from refusal_nn.tracing import Answers, Handle, Passes, Work, pad

if TYPE_CHECKING:
    from refusal_nn.contrasts import Contrast
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs
    from refusal_nn.store import Recorder
    from refusal_nn.tracing._jobs import Collect

ABLATIONS = ("resample", "mean", "zero")
_SUMS = ("input_sum", "z_sum", "mlp_sum")


@dataclass(frozen=True)
class Ablation:
    """Values along excluded edges.

    Attributes
    ----------
    kind : str
        ``resample``: of the pair's corrupted prompt, position by position. ``mean``: over the
        corrupted discovery prompts, by position from the end. ``zero``.
    means : dict or None
        By name, a tensor a layer: ``input`` (one) and ``mlp`` ``[1, token, d_model]``, ``z`` ``[1,
        token, head, d_head]``, aligned at the last token.
    """

    kind: str
    means: Means | None = None

    @property
    def reach(self) -> int | None:
        """Longest prompt it has values for; None: any."""
        return None if self.means is None else int(self.means["input"][0].shape[1])

    def check(self, lengths: tuple[int, ...]) -> None:
        """Refuse prompts that are longer than any the means were taken over.

        Raises
        ------
        PromptError
        """
        if self.reach is not None and max(lengths) > self.reach:
            raise PromptError(
                f"a pair has {max(lengths)} tokens, but the longest discovery prompt has "
                f"{self.reach}, so there is no mean value at its first positions; use discovery pairs "
                "that are as long, or another ablation."
            )


def ablation_of(
    model: Model,
    kind: str,
    discovery: Pairs | None,
    *,
    batch_size: int | None = None,
    recorder: Recorder,
) -> Ablation:
    """The values of a kind of ablation.

    Raises
    ------
    RequestError
        If the kind is unknown, or a mean has no discovery pairs to be taken over.
    """
    if kind not in ABLATIONS:
        raise RequestError(f"unknown ablation {kind!r}; ablations are {', '.join(ABLATIONS)}.")
    if kind != "mean":
        return Ablation(kind)
    if discovery is None or not len(discovery):
        raise RequestError("mean ablation needs the discovery pairs its means are taken over.")
    rows = model.chat.tokens(discovery.corrupted.texts)
    return Ablation(kind, _means(model, rows, batch_size, recorder))


def ablated_run(
    work: Work, contrast: Contrast, ablation: Ablation, rows: slice
) -> Handle | Means | None:
    """What pairs' excluded edges carry, for :func:`ask_circuits`; asks for the run that holds it."""
    if ablation.kind == "resample":
        return ask_sources(work, contrast.batch("corrupted", rows))
    return ablation.means


def _means(
    model: Model, rows: list[list[int]], batch_size: int | None, recorder: Recorder
) -> Means:
    """Means by position from the end, over the prompts that reach it."""
    arch = model.arch
    width = max(map(len, rows))
    size = rows_asked(model, batch_size)
    # rows of one length share a block: sums over a padded batch would count the padding
    groups: list[list[int]] = []
    for length in sorted({len(row) for row in rows}):
        same = [i for i, row in enumerate(rows) if len(row) == length]
        groups += [same[i : i + size] for i in range(0, len(same), size)]
    shapes = {
        "input_sum": (("position", "d_model"), (width, arch.d_model)),
        "z_sum": (
            ("layer", "position", "head", "d_head"),
            (arch.n_layers, width, arch.n_heads, arch.d_head),
        ),
        "mlp_sum": (("layer", "position", "d_model"), (arch.n_layers, width, arch.d_model)),
    }
    data: dict[str, Any] = {
        name: (("block", *dims), np.zeros((len(groups), *shape)))
        for name, (dims, shape) in shapes.items()
    }
    template = xr.Dataset(
        data,
        coords={
            "block": np.arange(len(groups)),
            "layer": np.arange(arch.n_layers),
            "position": np.arange(-width, 0),
            "head": np.arange(arch.n_heads),
        },
    )
    batches = [{"block": slice(i, i + 1)} for i in range(len(groups))]

    def batch(i: int, work: Work) -> Collect:
        asked = ask_sources(work, pad([rows[r] for r in groups[i]], model.pad_token), total=True)

        def collect(answers: Answers) -> xr.Dataset:
            part = template.isel(block=batches[i]["block"]).copy(deep=True)
            for name in _SUMS:
                total = answers[asked][name.removesuffix("_sum")].numpy()
                axis = part[name].dims.index("position") - 1
                missing = width - total.shape[axis]
                lead = [(missing if a == axis else 0, 0) for a in range(total.ndim)]
                part[name].values[0] = np.pad(total, lead)
            return part

        return collect

    sums = recorder.stage("means", template, batches, Passes(model, batch))
    reach = np.zeros(width)
    for group in groups:
        reach[width - len(rows[group[0]]) :] += len(group)
    out: Means = {}
    for name in _SUMS:
        total = sums[name].sum("block")
        mean = (total / xr.DataArray(reach, dims="position")).transpose(*total.dims).values
        layers = mean[None] if "layer" not in total.dims else mean
        # tensors of their own: a view ships with all that it is a view of
        out[name.removesuffix("_sum")] = [torch.tensor(layer)[None] for layer in layers]
    return out
