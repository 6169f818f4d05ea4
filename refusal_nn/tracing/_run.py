"""Running requests, and the two things most scripts want: activations and completions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from refusal_nn.errors import RequestError
from refusal_nn.interventions import to_json
from refusal_nn.models import BLOCK_SITES, HEAD_SITES, Model
from refusal_nn.tracing._batch import (
    Batch,
    Request,
    Results,
    forward_request,
    generate_request,
    of_rows,
    pad,
)
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
    model.backend.prepare(model)
    return model.backend.run(model, requests)


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
        A vector with one row a prompt gives each prompt its own.
    batch_size : int
        Prompts a forward pass. The result does not depend on it beyond rounding.
    padding_side : {"left", "right"}
        The result does not depend on it.

    Returns
    -------
    xarray.Dataset
        One variable a site, named after it: ``(prompt, layer, position, d_model)``, or
        ``(prompt, layer, position, head, d_head)`` at q and z, with ``kv_head`` for ``head`` at k
        and v. Labels of the prompts where they have some; attrs identify the model, the prompts and
        the interventions.

    Raises
    ------
    RequestError
        If a site is not one of a block, layers or positions are not a list of whole numbers, or
        there are no prompts.
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
    chosen = whole_numbers("layers", range(model.n_layers) if layers is None else layers)
    where = tuple(
        whole_numbers("positions", model.chat.positions if positions is None else positions)
    )
    found = capture_tokens(
        model,
        model.chat.tokens(texts_of(prompts)),
        [Capture(site, site, chosen, where) for site in names],
        interventions,
        batch_size=batch_size,
        padding_side=padding_side,
    )
    data = {}
    for site in names:
        # with grouped-query attention keys and values have fewer heads than queries
        heads = "kv_head" if site in ("k", "v") else "head"
        last = (heads, "d_head") if site in HEAD_SITES else ("d_model",)
        dims = ("layer", "prompt", "position", *last)
        data[site] = xr.DataArray(found[site], dims=dims).transpose("prompt", ...)
    out = xr.Dataset(data, coords={"layer": chosen, "position": list(where)})
    out = out.assign_coords(
        {h: np.arange(out.sizes[h]) for h in ("head", "kv_head") if h in out.dims}
    )
    if hasattr(prompts, "to_dataset"):
        labels = prompts.to_dataset()
        out = out.assign_coords({k: v for k, v in labels.coords.items() if v.dims == ("prompt",)})
        out.attrs |= labels.attrs
    return out.assign_attrs(model.identity(), interventions=to_json(interventions))


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

    A vector of an intervention with one row a token row gives each its own.
    The row axis is the second of a capture stacked over layers, else the first. Half precision
    comes back as float32, which numpy has and which holds it exactly.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for batch, edits in _batches(model, rows, interventions, batch_size, padding_side):
        request = forward_request(model, batch, captures, edits)
        (out,) = run(model, [request])
        stacked = request.plan["stacked"]
        for name, tensor in out.items():
            parts.setdefault(name, []).append(tensor)
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

    Interventions act at every step unless they say ``when="prompt"``; a vector with one row a
    prompt gives each prompt its own.
    """
    rows = model.chat.tokens(texts_of(prompts))
    out: list[list[int]] = []
    for batch, edits in _batches(model, rows, interventions, batch_size, "left"):
        request = generate_request(model, batch, edits, max_new_tokens=max_new_tokens)
        (result,) = run(model, [request])
        out += completions(model, result["ids"])
    return out


def _batches(
    model: Model,
    rows: Sequence[Sequence[int]],
    interventions: Sequence[Intervention],
    batch_size: int,
    padding_side: str,
) -> Iterator[tuple[Batch, list[Intervention]]]:
    """Token rows in padded batches, each with the interventions cut to it."""
    if batch_size < 1:
        raise RequestError(f"batch size must be at least 1, got {batch_size}.")
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        batch = pad(rows[part], model.pad_token, padding_side=padding_side)
        yield batch, of_rows(interventions, part, len(rows))


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


def whole_numbers(name: str, values: Any) -> list[int]:
    """A non-empty list of whole numbers, as layers and positions are given.

    Raises
    ------
    RequestError
        If it is anything else.
    """
    given = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise RequestError(f"{name} is a list of whole numbers such as [{given}], not {given!r}.")
    items = list(given)
    if not items:
        raise RequestError(f"{name} is empty; name at least one, or leave it out for the default.")
    for item in items:
        if isinstance(item, bool | np.bool_) or not isinstance(item, int | np.integer):
            raise RequestError(f"{name} holds {item!r}; give whole numbers.")
    return [int(item) for item in items]


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
