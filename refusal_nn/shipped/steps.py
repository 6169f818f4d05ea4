"""A step of an optimisation, taken where the model is: shipped, so torch only and plain data.

The state of an optimisation (a vector and its optimiser's moments) stays there between the steps of a
job: each of these functions returns it anew, to be held for the next step.
"""

from __future__ import annotations

from typing import Any

import torch

from refusal_nn.shipped.metrics import last_token, metric_values


def vector_gradient(
    model: Any, taken: dict[str, Any], args: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """The gradient of a weighted sum of metrics at a vector that this pass added.

    Parameters
    ----------
    model : nnsight model
    taken : dict
        ``readout``, live, which the metric reads, and ``added``, live: the site after the vector was
        added, of one layer or of several.
    args : dict
        ``metric``; ``weights`` ``[row]``; ``vector`` ``[d]``; and, where there are, ``clean`` (the
        readout of an earlier pass, for ``kl``), ``tokens`` ``[row, token]`` (flags: where the vector
        was added; everywhere without them) and ``gradient`` ``[d]`` of earlier passes, which is added.

    Returns
    -------
    dict
        ``metric`` ``[row]``, float64; ``gradient`` ``[d]`` in the dtype of the vector.
    """
    readout = last_token(taken["readout"])
    clean = last_token(args["clean"]) if "clean" in args else readout.detach()
    values = metric_values(readout, args["metric"], clean)
    places = taken["added"] if isinstance(taken["added"], list) else [taken["added"]]
    weights = args["weights"].to(values)
    slopes = torch.autograd.grad((values * weights).sum(), places)
    total = torch.zeros(args["vector"].shape, dtype=torch.float64, device=values.device)
    for slope in slopes:
        slope = slope.to(total)
        if "tokens" in args:
            slope = slope * args["tokens"].to(total)[..., None]
        total += slope.flatten(0, -2).sum(0)
    if "gradient" in args:
        total += args["gradient"].to(total)
    return {"metric": values.detach(), "gradient": total.to(args["vector"].dtype)}


def vector_step(model: Any, taken: dict[str, Any], args: dict[str, Any]) -> dict[str, torch.Tensor]:
    """A vector that this pass added, after one step of its optimiser.

    Parameters
    ----------
    model : nnsight model
    taken, args : dict
        Those of :func:`vector_gradient`, and ``first``, ``second`` ``[d]`` (moments), ``step`` (from
        0) and ``optimizer``, see :func:`stepped`.

    Returns
    -------
    dict
        ``metric`` ``[row]``, of the vector before the step; ``gradient_norm``, a scalar; and the state
        after it: ``vector``, ``first``, ``second``.
    """
    found = vector_gradient(model, taken, args)
    gradient = found["gradient"]
    state = {name: args[name].detach().to(gradient) for name in ("vector", "first", "second")}
    with torch.no_grad():
        after = stepped(state, gradient, args["step"], args["optimizer"])
    return {"metric": found["metric"], "gradient_norm": gradient.double().norm(), **after}


def stepped(
    state: dict[str, torch.Tensor], gradient: torch.Tensor, step: int, options: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """One step of ``torch.optim`` Adam, AdamW or SGD, without anything changed in place.

    Parameters
    ----------
    state : dict
        ``vector``, ``first`` and ``second``, of one shape; the moments are zero at first. ``first`` is
        the momentum of SGD, which has no ``second``.
    gradient : torch.Tensor
    step : int
        How many steps there were before.
    options : dict
        ``kind`` (``adam`` or ``sgd``), ``lr``, ``betas``, ``eps``, ``momentum``, ``weight_decay``,
        ``decoupled`` (the decay does not pass through the moments), ``maximize``, and ``norm``: what
        the vector is scaled to afterwards, or None.
    """
    x, first, second = state["vector"], state["first"], state["second"]
    lr, decay = options["lr"], options["weight_decay"]
    g = -gradient if options["maximize"] else gradient
    if decay and options["decoupled"]:
        x = x * (1 - lr * decay)
    elif decay:
        g = g + decay * x
    if options["kind"] == "sgd":
        first = options["momentum"] * first + g
        x = x - lr * first
    elif options["kind"] == "adam":
        b1, b2 = options["betas"]
        first = torch.lerp(first, g, 1 - b1)
        second = second * b2 + (1 - b2) * g * g
        spread = second.sqrt() / (1 - b2 ** (step + 1)) ** 0.5 + options["eps"]
        x = x - (lr / (1 - b1 ** (step + 1))) * first / spread
    else:
        raise ValueError(f"unknown optimizer {options['kind']!r}")
    if options["norm"] is not None:
        x = x * (options["norm"] / x.norm())
    return {"vector": x, "first": first, "second": second}
