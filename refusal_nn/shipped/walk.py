"""The one ordered walk over a model's sites: everything that runs inside a trace.

This module is all of the package that ships to a server, so it imports nothing but torch, holds
only top-level functions, and works on plain data: a *plan* is a dict of lists, strings, ints and
tensors, made on the client by :mod:`refusal_nn.tracing._plan`. Its *visits* are in execution order,
because an nnsight trace may only touch values in the order the forward pass makes them.

A visit is ``{"path", "io", "views"}``; each view is one site at that place with the operations to
apply and the captures to take, in that order, so a capture sees the edited value. An operation is
``(name, args)``; tensors in ``args`` may carry a leading row axis, so that a batch of rows =
(prompt, variant) runs many variants at once. Where a tensor was made by an earlier request of the
same job, a *reference* stands for it: see :func:`bind`.
"""

from __future__ import annotations

from typing import Any

import torch


def resolve(root: Any, path: str) -> Any:
    """The module at a dotted path; digits index into module lists."""
    for part in path.split("."):
        if part:
            root = root[int(part)] if part.isdigit() else getattr(root, part)
    return root


def first(value: Any) -> Any:
    """The tensor of a module value that may be a tuple."""
    return value[0] if isinstance(value, tuple) else value


def put_first(value: Any, x: torch.Tensor) -> Any:
    """``value`` with its tensor replaced by ``x``."""
    return (x, *value[1:]) if isinstance(value, tuple) else x


def run_plan(model: Any, plan: dict[str, Any]) -> dict[str, Any]:
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
    plan: dict[str, Any],
    own: list[dict[str, torch.Tensor]],
    shared: list[dict[str, torch.Tensor]],
) -> dict[str, Any]:
    """The plan with its references replaced by the tensors they mean.

    A reference is ``("ref", shared, request, name, layer, rows)``: the held result ``name`` of a
    request of this batch, or of the job's shared ones; of it one layer, where given; of that the
    rows listed, where given.
    """

    def value(v: Any) -> Any:
        if not (isinstance(v, tuple) and len(v) == 6 and v[0] == "ref"):
            return v
        held = (shared if v[1] else own)[v[2]][v[3]]
        if v[4] is not None:
            held = held[v[4]]
        return held if v[5] is None else held[torch.tensor(v[5], device=held.device)]

    def args(given: dict[str, Any]) -> dict[str, Any]:
        return {k: value(v) for k, v in given.items()}

    def views(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                **view,
                "ops": [(name, args(a)) for name, a in view["ops"]],
                "captures": [(name, args(a)) for name, a in view["captures"]],
            }
            for view in items
        ]

    after = plan["after"]
    return {
        **plan,
        "visits": [{**visit, "views": views(visit["views"])} for visit in plan["visits"]],
        "logits": views(plan["logits"]),
        "after": None if after is None else (after[0], args(after[1])),
    }


def walk(model: Any, plan: dict[str, Any], step: int = 0) -> dict[str, Any]:
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
        raw = module.input if visit["io"] == "input" else module.output
        whole = first(raw)
        before = whole
        for view in visit["views"]:
            whole = visit_view(whole, view, state, taken, step)
        if whole is not before:
            if visit["io"] == "input":
                module.input = whole
            else:
                module.output = put_first(raw, whole)
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
    view: dict[str, Any],
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


def select_view(whole: torch.Tensor, view: dict[str, Any], state: dict[str, Any]) -> torch.Tensor:
    """The part of a module's tensor that a site means, heads unfolded."""
    kind = view["view"]
    if kind is None:
        x = whole
    elif kind[0] == "slice":
        x = whole[..., kind[1] : kind[2]]
    elif kind[0] == "interleaved":
        return whole.unflatten(-1, (view["heads"], 3, -1))[..., kind[1], :]
    elif kind[0] == "residual":  # resid_mid, seen from attn_out
        x = state["resid_pre"] + whole
    else:
        raise ValueError(f"unknown view {kind!r}")
    return x.unflatten(-1, (view["heads"], -1)) if view["heads"] else x


def replace_view(
    whole: torch.Tensor, view: dict[str, Any], x: torch.Tensor, state: dict[str, Any]
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


def gather(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """``x[row, index[row, p]]``: ``[row, token, ...]`` and ``[row, p]`` to ``[row, p, ...]``."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, index.to(x.device)]


def apply_at(
    x: torch.Tensor, name: str, args: dict[str, Any], state: dict[str, Any]
) -> torch.Tensor:
    """Apply an operation to the chosen token positions and heads of ``x``; the rest is unchanged.

    ``args["index"]`` is ``[row, p]`` token indices or None for every token; ``args["heads"]`` a
    list of heads or None. A position may also be given from the end of the prompt on the prompt's
    own pass only, so operations with an index always carry ``when="prompt"``. ``args["rows"]``, where
    there is one, lists the rows to change; ``index`` and other tensors then have those rows only.
    ``args["pick"]`` says which row of the operation's tensor each of them takes.
    """
    if args.get("pick") is not None:
        picked = {k: v[args["pick"]] for k, v in args.items() if k in ("direction", "value")}
        args = {**args, **picked, "pick": None}
    if args.get("rows") is not None:
        out = x.clone()
        out[args["rows"]] = apply_at(x[args["rows"]], name, {**args, "rows": None}, state)
        return out
    index, heads = args["index"], args["heads"]
    part = x if index is None else gather(x, index)
    if heads is None:
        edited = operate(part, name, args)
    else:
        edited = part.clone()
        edited[..., heads, :] = operate(part[..., heads, :], name, args)
    if index is None:
        return edited
    out = x.clone()
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    out[rows, index.to(x.device)] = edited.to(x.dtype)
    return out


def operate(x: torch.Tensor, name: str, args: dict[str, Any]) -> torch.Tensor:
    """One named operation on ``x`` of ``[row, token, ..., d]``, in ``x``'s dtype.

    Half precision is computed in float32: a projection in bfloat16 on a residual stream with norms
    in the thousands is worse than no intervention.
    """
    if name == "branch":
        return x.view_as(x)
    if name == "call":
        return call(x, args)
    dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
    y = x if x.dtype == dtype else x.to(dtype)
    if name == "ablate":
        out = ablate(y, args["direction"].to(device=y.device, dtype=dtype))
    elif name == "add":
        vector = args["direction"].to(device=y.device, dtype=dtype)
        out = y + row_shaped(vector, y)
    elif name == "set":
        value = args["value"].to(device=y.device, dtype=dtype)
        out = row_shaped(value, y).expand_as(y) if value.dim() < y.dim() else value.expand_as(y)
    elif (
        name == "swap"
    ):  # [row, token, (head,) 1] flags: where they are set, the value of another run
        value = args["value"].to(device=y.device, dtype=dtype)
        out = torch.where(args["mask"].to(y.device).bool(), value, y)
    elif name == "interpolate":  # [row] fractions of the way to a value
        value = args["value"].to(device=y.device, dtype=dtype)
        part = args["fraction"].to(device=y.device, dtype=dtype).reshape(-1, *([1] * (y.dim() - 1)))
        out = y + part * (value - y)
    elif name == "contiguous":
        out = y.contiguous()
    elif name == "leaf":  # a server freezes the parameters, so a graph has to begin somewhere
        out = y.detach().clone().requires_grad_(True)
    else:
        raise ValueError(f"unknown operation {name!r}")
    return out if x.dtype == dtype else out.to(x.dtype)


def call(x: torch.Tensor, args: dict[str, Any]) -> torch.Tensor:
    """What a function of the user's makes of ``x``: ``args["function"]`` of it and ``args["args"]``.

    Of a copy, because it may write into what it is given.
    """
    given = {name: beside(value, x) for name, value in args["args"].items()}
    out = args["function"](x.clone(), **given)
    if not isinstance(out, torch.Tensor) or out.shape != x.shape:
        got = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(
            f"function {args['name']} must return a tensor of shape {list(x.shape)}, as it is given, "
            f"but returned {got}"
        )
    return out.to(device=x.device, dtype=x.dtype)


def beside(value: Any, x: torch.Tensor) -> Any:
    """Plain data with its tensors on the device of ``x``, those of floats in its dtype."""
    if isinstance(value, torch.Tensor):
        floats = value.is_floating_point()
        return value.to(device=x.device, dtype=x.dtype if floats else value.dtype)
    if isinstance(value, dict):
        return {k: beside(v, x) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(beside(v, x) for v in value)
    return value


def row_shaped(vector: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A ``[d]`` or ``[row, d]`` vector broadcast over everything between row and ``d`` of ``x``."""
    if vector.dim() == 2 and x.dim() > 2:
        return vector.reshape(vector.shape[0], *([1] * (x.dim() - 2)), vector.shape[1])
    return vector


def ablate(x: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """``x - (x . r) r`` for a unit vector ``[d]``, or one per row ``[row, d]``."""
    if unit.dim() == 1:
        return torch.addcmul(x, (x @ unit)[..., None], unit, value=-1)
    flat = x.flatten(1, -2) if x.dim() > 3 else x
    projection = flat @ unit[:, :, None]
    return torch.baddbmm(flat, projection, unit[:, None, :], alpha=-1).reshape(x.shape)


def reduce(x: torch.Tensor, args: dict[str, Any]) -> torch.Tensor:
    """A capture: the chosen positions of ``x``, reduced where it was made.

    Always a fresh tensor: a saved view would keep, and download, the whole activation.
    """
    x = x.detach()
    if args["index"] is not None:
        x = gather(x, args["index"])
    kind = args["reduce"]
    if kind is None:
        return x.clone() if args["index"] is None else x
    if kind == "sum":  # [group, row] weights: sums over rows, in float64
        weights = args["weights"].to(device=x.device, dtype=torch.float64)
        return torch.tensordot(weights, x.to(torch.float64), dims=1)
    if kind == "project":  # [k, d] directions: projections
        return x.to(args["directions"].dtype) @ args["directions"].to(x.device).T
    if kind == "refusal_score":
        return refusal_score(x[:, 0], args["tokens"])
    if kind == "log_probs":
        return torch.log_softmax(x[:, 0].to(torch.float64), dim=-1)
    if kind == "smoothed_kl":
        return smoothed_kl(x[:, 0], args["baseline"].to(x.device))
    if kind == "smoothed_kl_slack":
        return smoothed_kl_slack(x[:, 0])
    if kind == "token_log_probs":
        return token_log_probs(x, args["tokens"].to(x.device))
    raise ValueError(f"unknown reduction {kind!r}")


def refusal_score(logits: torch.Tensor, tokens: list[int], epsilon: float = 1e-8) -> torch.Tensor:
    """Log-odds of the refusal tokens: ``log(p + e) - log(1 - p + e)``, in float64.

    ``[row, vocab]`` to ``[row]``, in nats; higher is more refusal (Arditi et al. 2024, section
    2.3).
    """
    p = torch.softmax(logits.to(torch.float64), dim=-1)[:, tokens].sum(-1)
    return torch.log(p + epsilon) - torch.log(1 - p + epsilon)


def smoothed_kl(
    logits: torch.Tensor, baseline: torch.Tensor, epsilon: float = 1e-6
) -> torch.Tensor:
    """``sum p_base (log(p_base + e) - log(p + e))`` a row, in float64 (Arditi et al. 2024, App. C).

    Not the divergence of the metric ``kl``, which has no ``e`` and cannot be below 0.

    ``baseline`` holds the log-probabilities of the unedited run, ``[row, vocab]``; where there are
    fewer than ``logits`` has rows, the rows of ``logits`` are variants of them, all rows after all.
    """
    p = torch.softmax(logits.to(torch.float64), dim=-1).unflatten(0, (-1, baseline.shape[0]))
    base = baseline.exp()
    return (base * (torch.log(base + epsilon) - torch.log(p + epsilon))).sum(-1).flatten()


def smoothed_kl_slack(logits: torch.Tensor, epsilon: float = 1e-6) -> torch.Tensor:
    """How far below 0 :func:`smoothed_kl` of a row can be, in nats, whatever the other side.

    ``-sum p log((q + e) / (p + e)) >= -log sum p (q + e) / (p + e)`` by concavity, and that sum is
    at most ``1 + e sum p / (p + e)`` because the q add up to 1. ``[row, vocab]`` to ``[row]``.
    """
    p = torch.softmax(logits.to(torch.float64), dim=-1)
    return torch.log1p(epsilon * (p / (p + epsilon)).sum(-1))


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probability of each next token: ``[row, token, vocab]`` and ids ``[row, token]``.

    Entry ``t`` is the log-probability of ``tokens[:, t]`` given everything before it; entry 0 is 0.
    """
    logp = torch.log_softmax(logits[:, :-1].to(torch.float32), dim=-1)
    found = logp.gather(-1, tokens[:, 1:, None])[..., 0]
    return torch.cat((torch.zeros_like(found[:, :1]), found), dim=1)


def new_tokens(ids: torch.Tensor, width: int) -> torch.Tensor:
    """What a generation added to prompts of ``width`` tokens, ``[row, token]`` int32."""
    return ids[:, width:].to(torch.int32)


def all_steps() -> Any:
    """Every forward pass of a generation.

    Not ``tracer.iter``: an edit tracer that was used cannot be serialised.
    """
    from nnsight.intervention.iterator import Iterations

    return Iterations()[:]


AFTER: dict[str, Any] = {}
"""What may follow a pass: name to a shipped function of (model, captures, args) giving results."""

WITHIN: dict[str, Any] = {}
"""Operations that need the model or other tensors of the same pass: name to a shipped function of
(value, args, state), where ``state["model"]`` is the model."""
