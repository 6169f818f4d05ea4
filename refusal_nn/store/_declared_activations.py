"""The variables of captured activations: one a site, named after it; imported for its effect."""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

_PLACE = ("prompt", "layer", "position")

_STREAM = {
    "resid_pre": "Residual stream at the input of a block",
    "attn_in": "What attention reads, after the norm where one is before it",
    "attn_out": "What attention writes to the residual stream",
    "resid_mid": "Residual stream between attention and MLP",
    "mlp_in": "What the MLP reads, after the norm where one is before it",
    "mlp_out": "What the MLP writes to the residual stream",
    "resid_post": "Residual stream at the output of a block",
}
_HEADS = {
    "q": ("head", "Queries as projected, before norms and rotary embedding"),
    "k": ("kv_head", "Keys as projected, before norms and rotary embedding"),
    "v": ("kv_head", "Values as projected"),
    "z": ("head", "What each head gives the output projection: values weighted by its attention"),
}

register(
    Spec(
        "kv_head",
        (),
        "int",
        "index",
        "Head of keys and values, counted from 0; query heads may share one",
        coord=True,
    ),
    *(
        Spec(site, (*_PLACE, "d_model"), "float", "activation units", summary)
        for site, summary in _STREAM.items()
    ),
    *(
        Spec(site, (*_PLACE, head, "d_head"), "float", "activation units", summary)
        for site, (head, summary) in _HEADS.items()
    ),
)
