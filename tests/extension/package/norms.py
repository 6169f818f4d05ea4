"""How long the residual stream is at the last token, layer by layer: an analysis of somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from refusal_nn.report import Paragraph, Part, Section, Study, Table
from refusal_nn.runs import analysis, batches_of, prompt_labels, rows_asked
from refusal_nn.store import MemoryRecorder, Recorder, Spec, register
from refusal_nn.tracing import Answers, Capture, Passes, Work, pad

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Prompts

STREAM_NORM = Spec(
    "stream_norm",
    ("prompt", "layer"),
    "float",
    "residual stream units",
    "Euclidean norm of the residual stream at the last token; larger is longer",
    prompt_labels=("prompt_id",),
)
register(STREAM_NORM)


@analysis("norms-measure", splits={"prompts": "test"}, section="norms:part")
def measure(
    model: Model,
    prompts: Prompts,
    *,
    scale: float = 1.0,
    batch_size: int | None = None,
    recorder: Recorder | None = None,
) -> xr.Dataset:
    """Norm of the residual stream at the last token of every prompt.

    Parameters
    ----------
    model : Model
    prompts : Prompts
    scale : float
        What the norms are divided by.
    batch_size : int, optional
        Prompts a pass.
    recorder : Recorder, optional

    Returns
    -------
    xarray.Dataset
        ``stream_norm`` ``(prompt, layer)``.
    """
    rows = model.chat.tokens(prompts.texts)
    shape = (len(prompts), model.n_layers)
    template = xr.Dataset(
        {STREAM_NORM.name: (STREAM_NORM.dims, np.full(shape, np.nan))},
        coords={"layer": np.arange(model.n_layers), **prompt_labels(prompts)},
    )
    batches = batches_of(len(prompts), rows_asked(model, batch_size), "prompt")

    def batch(i: int, work: Work) -> Callable[[Answers], xr.Dataset]:
        asked = work.forward(
            pad(rows[batches[i]["prompt"]], model.pad_token),
            [Capture("stream", "resid_pre", positions=(-1,))],
        )

        def collect(answers: Answers) -> xr.Dataset:
            norm = answers[asked]["stream"].double().norm(dim=-1)[..., 0].T / scale
            part = template.isel(batches[i])
            return part.assign({STREAM_NORM.name: (STREAM_NORM.dims, norm.numpy())})

        return collect

    keep = recorder if recorder is not None else MemoryRecorder()
    found = keep.stage("norms", template, batches, Passes(model, batch))
    return found.assign_attrs(model.identity(), **prompts.to_dataset().attrs, scale=scale)


def part(study: Study) -> Part:
    """The mean norm of every layer."""
    source = study.get("norms-measure")
    mean = source.data[STREAM_NORM.name].mean("prompt")
    rows = [[str(int(at["layer"])), f"{float(at):.1f}"] for at in mean]
    text = f"The stream is longest at the input of layer {int(mean['layer'][int(mean.argmax())])}."
    table = Table(["layer", "norm"], rows, caption="Mean over prompts.", numeric=(0, 1))
    return Part([Section(source.kind, "Norms", [Paragraph(text), table])], answer=[text])
