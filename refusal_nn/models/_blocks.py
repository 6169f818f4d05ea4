"""Where a block's readers and heads keep their weights, as plain data for shipped code.

Attribution and exact edge patching read weights where the model is. They need to know through which
norm queries, keys, values and the MLP read the residual stream, which rows of which projection are
which head, and whether a norm stands between the heads' sum and the residual stream (Gemma 2 and 3,
OLMo 2).
"""

from __future__ import annotations

from typing import Any

from refusal_nn.errors import ModelError
from refusal_nn.models import Model

_ATTENTION_NORMS = ("input_layernorm", "ln_1")


def block_places(model: Model) -> list[dict[str, Any]]:
    """Readers and writers of every block.

    Parameters
    ----------
    model : Model
        May be on the meta device: no weight is read.

    Returns
    -------
    list of dict
        One a layer, paths from the model's root. ``projections``: for each module that makes
        queries, keys or values ``{path, parts}``, with one ``{site, path, transposed, view, heads}`` a part
        in the order q, k, v; ``attn_norm`` and ``mlp_norm``: ``{path, kind, epsilon}`` of the norm
        before attention and before the MLP, or None; ``writer``: ``{output, transposed, heads,
        post_norm, epsilon}`` of the attention output projection.

    Raises
    ------
    ModelError
        If a norm is neither a LayerNorm nor an RMSNorm, so that we do not know its Jacobian, or the
        attention output has a bias in front of a norm, which then belongs to no head.
    """
    return [_places(model, layer) for layer in range(model.n_layers)]


def _places(model: Model, layer: int) -> dict[str, Any]:
    arch = model.arch
    root = arch.block(layer)
    block = _module(model, root)
    before = next((f"{root}.{name}" for name in _ATTENTION_NORMS if hasattr(block, name)), None)
    after = f"{root}.{arch.place('attn_out').path}"
    output = f"{root}.{arch.place('z').path}"
    post_norm = None if after == output else after
    if post_norm and getattr(_module(model, output), "bias", None) is not None:
        raise ModelError(
            f"{arch.family}: the attention output has a bias in front of a norm, so what the heads "
            "write does not add up to what attention writes; attribution to heads is not defined."
        )
    if arch.parallel:
        own = f"{root}.post_attention_layernorm"
        mlp_norm = own if hasattr(block, "post_attention_layernorm") else before
    else:
        path = arch.place("resid_mid").path
        mlp_norm = None if path == arch.place("mlp_in").path else f"{root}.{path}"
    projections: dict[str, list[dict[str, Any]]] = {}
    for site in ("q", "k", "v"):
        place = arch.place(site)
        path = f"{root}.{place.path}"
        part = {
            "site": site,
            "path": path,
            "transposed": _transposed(_module(model, path)),
            "view": place.view,
            "heads": place.heads,
        }
        projections.setdefault(path, []).append(part)
    return {
        "projections": [{"path": path, "parts": parts} for path, parts in projections.items()],
        "attn_norm": _norm(model, before),
        "mlp_norm": _norm(model, mlp_norm),
        "writer": {
            "output": output,
            "transposed": _transposed(_module(model, output)),
            "heads": arch.n_heads,
            "post_norm": post_norm,
            "epsilon": _norm(model, post_norm)["epsilon"] if post_norm else 0.0,  # type: ignore[index]
        },
    }


def _norm(model: Model, path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    norm = _module(model, path)
    name = type(norm).__name__
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if epsilon is None or not name.endswith(("LayerNorm", "RMSNorm")):
        raise ModelError(
            f"{model.arch.family}: the norm {path!r} is a {name}, neither a LayerNorm nor an RMSNorm, "
            "so we do not know its derivative and cannot attribute through it."
        )
    kind = "layer" if name.endswith("LayerNorm") else "rms"
    return {"path": path, "kind": kind, "epsilon": float(epsilon)}


def _module(model: Model, path: str) -> Any:
    root: Any = model.module
    for part in path.split("."):
        root = root[int(part)] if part.isdigit() else getattr(root, part)
    return root


def _transposed(module: Any) -> bool:
    """Whether a projection keeps its weight as ``[in, out]``, as GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D"
