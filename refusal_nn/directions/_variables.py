"""What direction analyses store."""

from __future__ import annotations

from functools import partial

from refusal_nn.store import register
from refusal_nn.store.variables import specs

_ARDITI = "Arditi et al. 2024"
_TABLE = "[position], [layer]"
_CANDIDATE = f"[candidate], {_TABLE}"

_activation = partial(specs, "float", "residual stream units", f"{_ARDITI}, section 2.3")
_score = partial(specs, "float", "nats", f"{_ARDITI}, appendix C")
_verdict = partial(specs, "bool", "", f"{_ARDITI}, appendix C")

register(
    *_activation(
        f"[draw], {_TABLE}, d_model",
        direction="Difference of the mean activations of harmful and harmless prompts, not normalised",
    ),
    *_activation(
        f"[draw], {_TABLE}",
        direction_norm="Euclidean norm of direction",
    ),
    *_activation(
        f"{_TABLE}, d_model",
        mean_harmful="Mean activation over the harmful prompts that were kept",
        mean_harmless="Mean activation over the harmless prompts that were kept",
    ),
    *specs(
        "float",
        "residual stream units",
        "",
        f"block, harm, {_TABLE}, d_model",
        activation_sum="Sum of activations over the prompts of a batch and class; sums over blocks "
        "give the means",
    ),
    *specs("int", "count", "", "block, [harm]", n_prompts="Prompts in each sum"),
    *specs(
        "bool",
        "",
        f"{_ARDITI}, appendix A",
        "prompt",
        kept="Whether the unedited model treats the prompt as its label says, so that it was used",
    ),
    *_score(
        _CANDIDATE,
        bypass="Mean refusal score of harmful prompts under ablation; lower = ablation bypasses refusal",
        induce="Mean refusal score of harmless prompts under addition; higher = addition induces refusal",
        kl="Mean KL divergence of the next token on harmless prompts, unedited from ablated; 0 = same",
    ),
    *_score(
        f"{_CANDIDATE}, prompt",
        bypass_per_prompt="Refusal score of each harmful prompt under ablation",
        induce_per_prompt="Refusal score of each harmless prompt under addition",
        kl_per_prompt="KL divergence of the next token for each harmless prompt, unedited from ablated",
    ),
    *specs(
        "float",
        "nats",
        "",
        "prompt",
        kl_slack="How far below 0 the smoothed KL of a prompt can be, whatever the edited distribution",
    ),
    *specs(
        "string",
        "late layer | induce | kl | (empty)",
        f"{_ARDITI}, appendix C",
        _CANDIDATE,
        dropped_by="Criterion of the selection rule that ruled a candidate out; empty if none did",
    ),
    *_verdict(
        f"[filter], {_CANDIDATE}", admissible="Whether a candidate passes the selection rule"
    ),
    *_verdict(
        f"filter, {_CANDIDATE}",
        passes="Whether a candidate passes one criterion of the selection rule",
    ),
    *_verdict(_CANDIDATE, selected="The candidate that the selection rule picks"),
    *specs(
        "bool",
        "",
        "",
        _CANDIDATE,
        near_tie="Whether a candidate's bypass cannot be told from the selected one's",
    ),
)
