"""The one ordered walk over a model's sites: everything that runs inside a trace.

It ships to a server, so it holds only top-level functions and works on plain data: a *plan* is a dict
of lists, strings, ints and tensors, made on the client. Its *visits* are in execution order,
because an nnsight trace may only touch values in the order the forward pass makes them.

A visit is ``{"path", "io", "views"}``; each view is one site at that place with the operations to
apply and the captures to take, in that order, so a capture sees the edited value. An operation is
``(name, args)``; tensors in ``args`` may carry a leading row axis, so that a batch of rows =
(prompt, variant) runs many variants at once. Where a tensor was made by an earlier request of the
same job, a *reference* stands for it: see :func:`bind`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from refusal_nn.shipped.operations import apply_at
from refusal_nn.shipped.parts import first, heads_of, put_first, resolve
from refusal_nn.shipped.plans import is_ref, mapped
from refusal_nn.shipped.reductions import reduce
from refusal_nn.shipped.table import AFTER, WITHIN

if TYPE_CHECKING:
    from refusal_nn.shipped.plans import Plan, View


def run_plan(model: Any, plan: Plan) -> dict[str, Any]:
    """One forward pass under a plan, from its edits to what is left of its captures.

    Called inside a trace. ``plan["gradient"]`` keeps the graph; ``plan["after"]`` names a function of
    :data:`AFTER` that makes results of the captures while the graph is alive.
    """
    with torch.set_grad_enabled(plan["gradient"]):
        taken = walk(model, plan)
        if plan["after"] is not None:
            name, args = plan["after"]
            taken = AFTER[name](model, taken, args)
    return taken


def bind(
    plan: Plan,
    own: list[dict[str, torch.Tensor]],
    shared: list[dict[str, torch.Tensor]],
) -> Plan:
    """The plan with its references replaced by the tensors they mean.

    A reference is ``("ref", shared, request, name, layer, rows)``: the held result ``name`` of a
    request of this batch, or of the job's shared ones; of it one layer, where given; of that the
    rows listed, where given.
    """

    def meant(value: Any) -> Any:
        if not is_ref(value):
            return value
        _, of_job, request, name, layer, rows = value
        held = (shared if of_job else own)[request][name]
        if layer is not None:
            held = held[layer]
        return held if rows is None else held[torch.tensor(rows, device=held.device)]

    return mapped(plan, meant)  # type: ignore[no-any-return]


def walk(model: Any, plan: Plan, step: int = 0) -> dict[str, Any]:
    """Apply a plan's operations and take its captures, once, in execution order.

    Parameters
    ----------
    model : nnsight model
        Called inside a trace of it.
    plan : dict
        ``visits`` (see the module docstring), ``logits``: captures of the model's output, and
        ``stacked``: for a capture of several layers, which of those taken comes where.
    step : int
        Which forward pass of a generation this is; 0 is the prompt.

    Returns
    -------
    dict
        Capture name to tensor; captures of several layers are stacked, layer first. A *live*
        capture, which stays in the graph, is a list of tensors instead, one a layer.
    """
    taken: dict[str, list[torch.Tensor]] = {}
    state: dict[str, Any] = {"model": model}
    for visit in plan["visits"]:
        if step > 0 and not visit["decode"]:
            continue
        module = resolve(model, visit["path"])
        if visit["io"] == "skip":
            module.skip(module.input)
            continue
        raw = getattr(module, visit["io"])
        whole = before = first(raw)
        for view in visit["views"]:
            whole = visit_view(whole, view, state, taken, step)
        if whole is not before:
            setattr(module, visit["io"], put_first(raw, whole))
    if plan["logits"]:
        logits = model.output.logits
        for view in plan["logits"]:
            visit_view(logits, view, state, taken, step)
    out: dict[str, Any] = {}
    for name, tensors in taken.items():
        if name not in plan["stacked"]:
            out[name] = tensors[0]
            continue
        inorder = [tensors[i] for i in plan["stacked"][name]]
        out[name] = inorder if name in plan["live"] else torch.stack(inorder)
    return out


def visit_view(
    whole: torch.Tensor,
    view: View,
    state: dict[str, Any],
    taken: dict[str, list[torch.Tensor]],
    step: int,
) -> torch.Tensor:
    """One site at one place: apply its operations, then take its captures."""
    x = select_view(whole, view, state)
    edited = x
    for name, args in view["ops"]:
        if step == 0 or args["when"] == "all":
            inner = WITHIN.get(name)
            edited = inner(edited, args, state) if inner else apply_at(edited, name, args, state)
    if edited is not x:
        whole = replace_view(whole, view, edited, state)
    if view["keep"]:
        state[view["keep"]] = edited
    for name, args in view["captures"]:
        live = args["reduce"] == "live"
        taken.setdefault(name, []).append(edited if live else reduce(edited, args))
    return whole


def select_view(whole: torch.Tensor, view: View, state: dict[str, Any]) -> torch.Tensor:
    """The part of a module's tensor that a site means, heads unfolded."""
    kind = view["view"]
    if kind is not None and kind[0] == "residual":  # resid_mid, seen from attn_out
        whole, kind = state["resid_pre"] + whole, None
    return heads_of(whole, kind, view["heads"])


def replace_view(
    whole: torch.Tensor, view: View, x: torch.Tensor, state: dict[str, Any]
) -> torch.Tensor:
    """The module's tensor with its site replaced by ``x`` (the inverse of :func:`select_view`)."""
    kind = view["view"]
    if kind is not None and kind[0] == "interleaved":
        out = whole.unflatten(-1, (view["heads"], 3, -1)).clone()
        out[..., kind[1], :] = x
        return out.flatten(-3)
    if view["heads"]:
        x = x.flatten(-2)
    if kind is None:
        return x
    if kind[0] == "slice":
        return torch.cat((whole[..., : kind[1]], x, whole[..., kind[2] :]), dim=-1)
    return x - state["resid_pre"]


def all_steps() -> Any:
    """Every forward pass of a generation.

    Not ``tracer.iter``: an edit tracer that was used cannot be serialised.
    """
    from nnsight.intervention.iterator import Iterations

    return Iterations()[:]
