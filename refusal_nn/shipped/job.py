"""A whole job, run where the model is: its batches in order, and one compact answer."""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

import torch

from refusal_nn.shipped.trace import forward, generate
from refusal_nn.shipped.walk import bind

if TYPE_CHECKING:
    from refusal_nn.shipped.plans import Facts, JobAnswer, JobContent, Packed, PlainRequest


def run_job(model: Any, job: JobContent) -> JobAnswer:
    """Run a job inside a session.

    Parameters
    ----------
    model : nnsight model
    job : JobContent

    Returns
    -------
    JobAnswer
    """
    shared = hold(model, job["shared"])
    batches = [run_batch(model, batch, shared) for batch in job["batches"]]
    return {
        "batches": pack(batches),
        "check": pack([run_batch(model, job["check"], [])]),
        "facts": facts_of(model, job["weigh"]),
    }


def hold(model: Any, requests: list[PlainRequest]) -> list[dict[str, torch.Tensor]]:
    """What the shared requests of a job hold, each for those after it and for all batches."""
    held: list[dict[str, torch.Tensor]] = []
    for request in requests:
        held.append(run_request(model, request, held, held)[1])
    return held


def run_batch(
    model: Any, requests: list[PlainRequest], shared: list[dict[str, torch.Tensor]]
) -> list[dict[str, torch.Tensor]]:
    """The requests of one batch in order; what each returns, off the device."""
    own: list[dict[str, torch.Tensor]] = []
    results = []
    for request in requests:
        out, held = run_request(model, request, own, shared)
        own.append(held)
        results.append({name: tensor.detach().cpu() for name, tensor in out.items()})
    return results


def run_request(
    model: Any,
    request: PlainRequest,
    own: list[dict[str, torch.Tensor]],
    shared: list[dict[str, torch.Tensor]],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What a request returns and what it holds."""
    if request["plan"]["gradient"] and next(model._module.parameters()).is_meta:
        raise RuntimeError(
            "this server runs the code of your key apart from the weights, where there are no "
            "gradients; ask its operator for a trusted key"
        )
    plan = bind(request["plan"], own, shared)
    inputs, options = request["inputs"], request["options"]
    if request["generate"]:
        return {"ids": generate(model, inputs, plan, options)}, {}
    out = forward(model, inputs, plan, options)
    held = set(plan["held"])
    return (
        {name: x for name, x in out.items() if name not in held},
        {name: x for name, x in out.items() if name in held},
    )


def pack(batches: list[list[dict[str, torch.Tensor]]]) -> Packed:
    """Tensors joined to one a dtype, and where each is in it.

    A tensor saved by itself costs some hundred bytes beside its numbers. Integers that fit travel
    in 32 bits.
    """
    flat: dict[str, list[torch.Tensor]] = {}

    def placed(name: str, x: torch.Tensor) -> list[Any]:
        dtype = str(x.dtype)
        if x.dtype == torch.int64 and fits(x):
            x = x.to(torch.int32)
        kept = str(x.dtype)
        flat.setdefault(kept, []).append(x.reshape(-1))
        return [name, dtype, kept, list(x.shape)]

    layout = [[[placed(*named) for named in out.items()] for out in batch] for batch in batches]
    return {"layout": layout, "flat": {name: torch.cat(parts) for name, parts in flat.items()}}


def fits(x: torch.Tensor) -> bool:
    """Whether integers can travel in 32 bits."""
    return x.numel() == 0 or (int(x.min()) >= -(2**31) and int(x.max()) < 2**31)


def unpack(packed: Packed) -> list[list[dict[str, torch.Tensor]]]:
    """The inverse of :func:`pack`."""
    left = dict(packed["flat"])

    def taken(dtype: str, kept: str, shape: list[int]) -> torch.Tensor:
        x, left[kept] = left[kept].tensor_split([math.prod(shape)])
        return x.reshape(shape).to(getattr(torch, dtype.removeprefix("torch.")))

    return [
        [{name: taken(*form) for name, *form in results} for results in batch]
        for batch in packed["layout"]
    ]


def facts_of(model: Any, weigh: bool) -> Facts:
    """What the client has to know of the model it cannot see."""
    module = model._module
    parameters = sorted(module.named_parameters())
    facts: Facts = {
        "dtype": str(parameters[0][1].dtype).removeprefix("torch."),
        "commit": commit_of(model),
        "weights": "",
    }
    # where code runs in a process of its own the weights are not at hand
    if weigh and not parameters[0][1].is_meta:
        facts["weights"] = digest(parameters)
    return facts


def commit_of(model: Any) -> str:
    """Commit of the hub's repository that a model was loaded from; empty where it is not known."""
    from huggingface_hub import try_to_load_from_cache

    if str(model.repo_id).count("/") != 1:  # a folder
        return ""
    found = try_to_load_from_cache(model.repo_id, "config.json", revision=model.revision)
    return found.replace("\\", "/").split("/")[-2] if isinstance(found, str) else ""


def digest(parameters: list[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of named tensors, in the order given, as hex digits."""
    found = hashlib.sha256()
    for name, x in parameters:
        found.update(f"{name} {x.dtype} {list(x.shape)}".encode())
        found.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
