"""The labels that all runs share, and the texts of prompts; imported once, for its effect on the registry.

What an analysis stores is declared beside it, in its package's ``_variables``. Scores are per-prompt values
over (`position`, `layer`) tables unless said otherwise; "higher" always means the number, not its size.
"""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register


def _coord(name: str, dtype: str, unit: str, summary: str, source: str = "") -> Spec:
    return Spec(name, (), dtype, unit, summary, source, coord=True)


register(
    # labels of prompts
    _coord("prompt_id", "string", "", "Content hash of the prompt, the same wherever it occurs"),
    _coord("category", "string", "", "Topic of the prompt, named as in OR-Bench"),
    _coord("harm", "string", "harmful | harmless", "Whether the prompt asks for something harmful"),
    _coord(
        "style",
        "string",
        "toxic | hard | safe",
        "toxic: harmful; hard: harmless but worded like a harmful one; safe: plainly harmless",
    ),
    _coord("split", "string", "train | val | test", "Part of the prompt set; parts are disjoint"),
    _coord("source", "string", "", "Prompt set that the prompt comes from"),
    _coord("family", "string", "", "Template family; prompts of one family are not independent"),
    # labels of places in the model
    _coord(
        "layer",
        "int",
        "index",
        "Block, counted from 0. For resid_pre it is the block whose input is meant",
    ),
    _coord(
        "position",
        "int",
        "tokens",
        "Token counted from the end of the prompt; -1 is the last",
    ),
    _coord("head", "int", "index", "Attention head, counted from 0"),
    _coord("site", "string", "", "Where in the block: resid_pre, z, attn_out, mlp_out and so on"),
    _coord("feature", "int", "index", "Feature of a dictionary, counted from 0"),
    _coord("candidate", "int", "index", "Candidate direction, counted from 0"),
    _coord("step", "int", "index", "Step of an iteration, counted from 0"),
    _coord("edge", "int", "index", "Edge of a circuit, counted from 0"),
    _coord("src", "string", "", "Node that an edge starts from"),
    _coord("dst", "string", "", "Node that an edge ends at"),
    # labels of experiments
    _coord(
        "intervention", "string", "", "Name of the intervention; baseline is the unedited model"
    ),
    _coord("coefficient", "float", "1", "Factor applied to an added direction"),
    _coord("block", "int", "index", "Batch of prompts that a partial sum covers, counted from 0"),
    _coord("draw", "int", "index", "Random control, counted from 0"),
    _coord("control", "string", "", "Name of the control"),
    _coord("metric", "string", "", "Name of the metric"),
    _coord("filter", "string", "", "Criterion of the selection rule"),
    _coord("resample", "int", "index", "Bootstrap or permutation draw, counted from 0"),
    _coord("run", "string", "", "Name of the run"),
    _coord("analysis", "string", "", "Analysis that made the run"),
    _coord("model", "string", "", "Model that the run was made with"),
)

register(
    Spec(
        "text",
        ("prompt",),
        "string",
        "",
        "The prompt as written, before the chat template",
        prompt_labels=("prompt_id",),
    ),
    Spec(
        "used_text",
        ("used_prompt",),
        "string",
        "",
        "A prompt an earlier step used; held-out prompts must differ from all of these",
    ),
    Spec("used_family", ("used_prompt",), "string", "", "Its template family"),
    Spec(
        "activation",
        ("intervention", "site", "prompt", "layer", "head", "position", "d_model"),
        "float",
        "residual stream units",
        "Activation at a site",
        optional=("intervention", "site", "layer", "head", "position"),
    ),
)
