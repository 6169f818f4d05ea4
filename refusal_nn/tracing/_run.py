"""Running requests, and the two things most scripts want: activations and completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from refusal_nn.errors import RequestError
from refusal_nn.models import BLOCK_SITES, HEAD_SITES, Model
from refusal_nn.tracing._backends import Request, Results, execute
from refusal_nn.tracing._batch import forward_request, generate_request, pad
from refusal_nn.tracing._check import verify
from refusal_nn.tracing._plan import Capture

if TYPE_CHECKING:
    import xarray as xr

    from refusal_nn.interventions import Intervention
    from refusal_nn.prompts import Prompts


def run(model: Model, requests: Sequence[Request]) -> Results:
    """Execute a job on the model's backend, after the map of the model has been verified.

    Returns
    -------
    list of dict
        One a request: capture name to CPU tensor; ``{"ids": [row, token]}`` for a generation.

    Raises
    ------
    BackendError
        If the model or the backend fails.
    ModelError
        If the residual stream does not add up on the architecture map (first call only).
    """
    if model.remote is None:  # else the check rides along
        verify(model)
    return execute(model, requests)


def capture(
    model: Model,
    prompts: Prompts | Sequence[str],
    sites: str | Sequence[str] = "resid_pre",
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    interventions: Sequence[Intervention] = (),
    batch_size: int = 32,
    padding_side: str = "left",
) -> xr.Dataset:
    """Activations at named sites and positions of each prompt.

    Parameters
    ----------
    model : Model
    prompts : Prompts or sequence of str
        Instructions; the chat template is applied.
    sites : str or sequence of str
        Block sites, see ``refusal_nn.models.BLOCK_SITES``.
    layers : sequence of int, optional
        Blocks; default all.
    positions : sequence of int, optional
        From the end of the prompt; default the end-of-instruction span.
    interventions : sequence of Intervention
    batch_size : int
        Prompts a forward pass.
    padding_side : {"left", "right"}
        The result does not depend on it.

    Returns
    -------
    xarray.Dataset
        One variable a site, named after it: ``(prompt, layer, position, d_model)``, or
        ``(prompt, layer, position, head, d_head)`` at q and z, with ``kv_head`` for ``head`` at k
        and v.

    Raises
    ------
    RequestError
        If a site is not one of a block, or there are no prompts.
    InterventionError
        If a layer or position is not there in the model or in every prompt.
    """
    import xarray as xr

    names = [sites] if isinstance(sites, str) else list(sites)
    unknown = [site for site in names if site not in BLOCK_SITES]
    if unknown or not names:
        raise RequestError(
            f"no block site {', '.join(map(repr, unknown)) or 'named'}; sites are "
            f"{', '.join(BLOCK_SITES)} (capture_tokens takes embed, final_norm and logits too)."
        )
    chosen = list(range(model.n_layers) if layers is None else layers)
    where = tuple(model.chat.positions if positions is None else positions)
    rows = model.chat.tokens(texts_of(prompts))
    captures = [Capture(site, site, chosen, where) for site in names]
    found = capture_tokens(
        model,
        rows,
        captures,
        interventions,
        batch_size=batch_size,
        padding_side=padding_side,
    )
    data = {}
    for site in names:
        dims: tuple[str, ...] = ("layer", "prompt", "position")
        # with grouped-query attention keys and values have fewer heads than queries
        heads = "kv_head" if site in ("k", "v") else "head"
        dims += (heads, "d_head") if site in HEAD_SITES else ("d_model",)
        data[site] = xr.DataArray(found[site], dims=dims).transpose("prompt", ...)
    out = xr.Dataset(data, coords={"layer": chosen, "position": list(where)})
    if hasattr(prompts, "to_dataset"):
        labels = prompts.to_dataset()
        out = out.assign_coords({k: v for k, v in labels.coords.items() if v.dims == ("prompt",)})
    return out


def capture_tokens(
    model: Model,
    rows: Sequence[Sequence[int]],
    captures: Sequence[Capture],
    interventions: Sequence[Intervention] = (),
    *,
    batch_size: int = 32,
    padding_side: str = "left",
) -> dict[str, np.ndarray]:
    """Captures over token rows in batches, joined along the row axis.

    The row axis is the second of a capture stacked over layers, else the first. Half precision
    comes back as float32, which numpy has and which holds it exactly.
    """
    check_batch_size(batch_size)
    parts: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(rows), batch_size):
        batch = pad(rows[start : start + batch_size], model.pad_token, padding_side=padding_side)
        (out,) = run(model, [forward_request(model, batch, captures, interventions)])
        for name, tensor in out.items():
            parts.setdefault(name, []).append(tensor)
    stacked = {
        c.name
        for c in captures
        if not isinstance(c.layers, int) and c.site not in ("embed", "final_norm", "logits")
    }
    return {
        name: to_numpy(torch.cat(tensors, dim=1 if name in stacked else 0))
        for name, tensors in parts.items()
    }


def generate(
    model: Model,
    prompts: Prompts | Sequence[str],
    interventions: Sequence[Intervention] = (),
    *,
    max_new_tokens: int = 64,
    batch_size: int = 32,
) -> list[list[int]]:
    """Greedy completions as token ids, without the prompt and cut before the end token.

    Interventions act at every step unless they say ``when="prompt"``.
    """
    check_batch_size(batch_size)
    rows = model.chat.tokens(texts_of(prompts))
    out: list[list[int]] = []
    for start in range(0, len(rows), batch_size):
        batch = pad(rows[start : start + batch_size], model.pad_token)
        request = generate_request(model, batch, interventions, max_new_tokens=max_new_tokens)
        (result,) = run(model, [request])
        out += completions(model, result["ids"])
    return out


def completions(model: Model, ids: torch.Tensor) -> list[list[int]]:
    """Generated rows of new tokens, cut before the first end token.

    Padding follows an end token, so it goes too; a padding token the model itself chose stays.
    """
    ends = set(model.eos_tokens)
    out = []
    for row in ids.tolist():
        stop = next((i for i, token in enumerate(row) if token in ends), len(row))
        out.append(row[:stop])
    return out


def texts_of(prompts: Any) -> list[str]:
    """The instructions of a prompt set or of a plain list of strings."""
    if isinstance(prompts, str):
        raise RequestError("give a list of prompts, not one string.")
    texts = list(getattr(prompts, "texts", prompts))
    if not texts:
        raise RequestError("there are no prompts to run; the set is empty.")
    return texts


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A numpy array; half precision widens to float32."""
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    return tensor.numpy()


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size below 1."""
    if batch_size < 1:
        raise RequestError(f"batch size must be at least 1, got {batch_size}.")
