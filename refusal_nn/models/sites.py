"""The named tensors of a forward pass: the lists every other part of the package speaks of.

This module imports nothing, so whoever needs a list of sites may import it.
"""

BLOCK_SITES = (
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_out",
    "resid_post",
)
"""Sites of one block, in the order a sequential pre-norm block computes them."""

MODEL_SITES = ("embed", "final_norm", "logits")
"""Sites outside the blocks."""

SITES = ("embed", *BLOCK_SITES, "final_norm", "logits")
"""Every site, in the order of a forward pass."""

HEAD_SITES = ("q", "k", "v", "z")
"""Sites with a head axis: ``[row, token, head, d_head]``."""

STREAM_SITES = tuple(site for site in BLOCK_SITES if site not in HEAD_SITES)
"""Sites of one block as wide as the residual stream: ``[row, token, d_model]``."""

WRITES = ("resid_pre", "attn_out", "mlp_out")
"""The input of a block and what its modules write: where Arditi et al. ablate."""
