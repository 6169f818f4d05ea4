"""Where a block's readers and heads keep their weights, as plain data for shipped code.

Attribution and exact edge patching read weights where the model is. They need to know through which
norm queries, keys, values and the MLP read the residual stream, which rows of which projection are
which head, and whether a norm stands between the heads' sum and the residual stream (Gemma 2 and 3,
OLMo 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from refusal_nn.errors import ModelError
from refusal_nn.models._families import module_at

if TYPE_CHECKING:
    from refusal_nn.models._model import Model


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
        If a norm is neither a LayerNorm nor an RMSNorm, so that we do not know its Jacobian, if the
        attention output has a bias in front of a norm, which then belongs to no head, or if a block
        has no projection of its own for queries, keys or values.
    """
    return [_places(model, layer) for layer in range(model.n_layers)]


def _places(model: Model, layer: int) -> dict[str, Any]:
    arch, module = model.arch, model.module
    root = arch.block(layer)
    after = f"{root}.{arch.place('attn_out').path}"
    output = f"{root}.{arch.place('z').path}"
    post_norm = None if after == output else _norm(model, after)
    if post_norm and getattr(module_at(module, output), "bias", None) is not None:
        raise ModelError(
            f"{arch.family}: the attention output has a bias in front of a norm, so what the heads "
            "write does not add up to what attention writes; attribution to heads is not defined."
        )
    projections: dict[str, list[dict[str, Any]]] = {}
    for site in ("q", "k", "v"):
        place = arch.place(site)
        path = f"{root}.{place.path}"
        projection = module_at(module, path)
        if projection is None:
            raise ModelError(
                f"{arch.family}: block {layer} makes {site} by no module {place.path}, so attribution "
                "to its heads is not defined."
            )
        part = {
            "site": site,
            "path": path,
            "transposed": _transposed(projection),
            "view": place.view,
            "heads": place.heads,
        }
        projections.setdefault(path, []).append(part)
    return {
        "projections": [{"path": path, "parts": parts} for path, parts in projections.items()],
        "attn_norm": _norm(model, arch.attn_norm and f"{root}.{arch.attn_norm}"),
        "mlp_norm": _norm(model, arch.mlp_norm and f"{root}.{arch.mlp_norm}"),
        "writer": {
            "output": output,
            "transposed": _transposed(module_at(module, output)),
            "heads": arch.n_heads,
            "post_norm": post_norm and post_norm["path"],
            "epsilon": post_norm["epsilon"] if post_norm else 0.0,
        },
    }


def _norm(model: Model, path: str | None) -> dict[str, Any] | None:
    if path is None:
        return None
    norm = module_at(model.module, path)
    name = type(norm).__name__
    epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if epsilon is None or not name.endswith(("LayerNorm", "RMSNorm")):
        raise ModelError(
            f"{model.arch.family}: the norm {path!r} is a {name}, neither a LayerNorm nor an RMSNorm, "
            "so we do not know its derivative and cannot attribute through it."
        )
    kind = "layer" if name.endswith("LayerNorm") else "rms"
    return {"path": path, "kind": kind, "epsilon": float(epsilon)}


def _transposed(module: Any) -> bool:
    """Whether a projection keeps its weight as ``[in, out]``, as GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D"
