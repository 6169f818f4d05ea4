"""The variables and coordinates this package stores; imported once, for its effect on the registry.

Other modules declare more with :func:`refusal_nn.store.register`. Scores are per-prompt values over
(`position`, `layer`) tables unless said otherwise; "higher" always means the number, not its size.
"""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

_ARDITI = "Arditi et al. 2024"
_TABLE = ("position", "layer")
_GRID = ("intervention", "coefficient", "position", "layer", "candidate", "prompt")
_ANY = ("intervention", "coefficient", "position", "layer", "candidate")


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
        "direction",
        ("draw", "position", "layer", "d_model"),
        "float",
        "residual stream units",
        "Difference of the mean activations of harmful and harmless prompts, not normalised",
        f"{_ARDITI}, section 2.3",
        optional=("draw", *_TABLE),
    ),
    Spec(
        "direction_norm",
        ("draw", *_TABLE),
        "float",
        "residual stream units",
        "Euclidean norm of direction",
        f"{_ARDITI}, section 2.3",
        optional=("draw", *_TABLE),
    ),
    Spec(
        "mean_harmful",
        (*_TABLE, "d_model"),
        "float",
        "residual stream units",
        "Mean activation over the harmful prompts that were kept",
        f"{_ARDITI}, section 2.3",
        optional=_TABLE,
    ),
    Spec(
        "mean_harmless",
        (*_TABLE, "d_model"),
        "float",
        "residual stream units",
        "Mean activation over the harmless prompts that were kept",
        f"{_ARDITI}, section 2.3",
        optional=_TABLE,
    ),
    Spec(
        "activation",
        ("intervention", "site", "prompt", "layer", "head", "position", "d_model"),
        "float",
        "residual stream units",
        "Activation at a site",
        optional=("intervention", "site", "layer", "head", "position"),
    ),
    Spec(
        "activation_sum",
        ("block", "harm", *_TABLE, "d_model"),
        "float",
        "residual stream units",
        "Sum of activations over the prompts of a batch and class; sums over blocks give the means",
        optional=_TABLE,
    ),
    Spec("n_prompts", ("block", "harm"), "int", "count", "Prompts in each sum", optional=("harm",)),
    Spec(
        "kept",
        ("prompt",),
        "bool",
        "",
        "Whether the unedited model treats the prompt as its label says, so that it was used",
        f"{_ARDITI}, appendix A",
    ),
    Spec(
        "refusal_score",
        _GRID,
        "float",
        "nats",
        "Log-odds of the refusal tokens at the last prompt position; higher = more refusal",
        f"{_ARDITI}, section 3.1",
        optional=_ANY,
    ),
    Spec(
        "first_token",
        ("prompt",),
        "int",
        "token id",
        "First token of the greedy completion; -1 if it is empty",
    ),
    Spec("refusal_token", ("token",), "int", "token id", "Tokens that begin a refusal"),
    Spec("refusal_token_text", ("token",), "string", "", "Text of each refusal token"),
)

# what one candidate direction does, on average and for each prompt
register(
    Spec(
        "bypass",
        ("candidate", *_TABLE),
        "float",
        "nats",
        "Mean refusal score of harmful prompts under ablation; lower = ablation bypasses refusal",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "induce",
        ("candidate", *_TABLE),
        "float",
        "nats",
        "Mean refusal score of harmless prompts under addition; higher = addition induces refusal",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "kl",
        ("candidate", *_TABLE),
        "float",
        "nats",
        "Mean KL divergence of the next token on harmless prompts, unedited from ablated; 0 = same",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "bypass_per_prompt",
        ("candidate", *_TABLE, "prompt"),
        "float",
        "nats",
        "Refusal score of each harmful prompt under ablation",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "induce_per_prompt",
        ("candidate", *_TABLE, "prompt"),
        "float",
        "nats",
        "Refusal score of each harmless prompt under addition",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "kl_per_prompt",
        ("candidate", *_TABLE, "prompt"),
        "float",
        "nats",
        "KL divergence of the next token for each harmless prompt, unedited from ablated",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "kl_slack",
        ("prompt",),
        "float",
        "nats",
        "How far below 0 the smoothed KL of a prompt can be, whatever the edited distribution",
    ),
    Spec(
        "dropped_by",
        ("candidate", *_TABLE),
        "string",
        "late layer | induce | kl | (empty)",
        "Criterion of the selection rule that ruled a candidate out; empty if none did",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "admissible",
        ("filter", "candidate", *_TABLE),
        "bool",
        "",
        "Whether a candidate passes the selection rule",
        f"{_ARDITI}, appendix C",
        optional=("filter", "candidate", *_TABLE),
    ),
    Spec(
        "passes",
        ("filter", "candidate", *_TABLE),
        "bool",
        "",
        "Whether a candidate passes one criterion of the selection rule",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "selected",
        ("candidate", *_TABLE),
        "bool",
        "",
        "The candidate that the selection rule picks",
        f"{_ARDITI}, appendix C",
        optional=("candidate", *_TABLE),
    ),
    Spec(
        "near_tie",
        ("candidate", *_TABLE),
        "bool",
        "",
        "Whether a candidate's bypass cannot be told from the selected one's",
        optional=("candidate", *_TABLE),
    ),
)

# what the model says
register(
    Spec(
        "completion",
        _GRID,
        "string",
        "",
        "Greedy completion, special tokens left out",
        optional=_ANY,
    ),
    Spec(
        "completion_tokens",
        (*_GRID, "token"),
        "int",
        "token id",
        "Generated tokens; -1 after the end",
        optional=_ANY,
    ),
    Spec(
        "n_tokens",
        _GRID,
        "int",
        "tokens",
        "Length of the completion, end token left out",
        optional=_ANY,
    ),
    Spec(
        "refused",
        _GRID,
        "bool",
        "",
        "Whether the completion contains one of the 12 published refusal strings",
        f"{_ARDITI}, section 2.4; refusal_nn.judges.substring",
        optional=_ANY,
    ),
    Spec(
        "repetition",
        _GRID,
        "float",
        "0 to 1",
        "Share of 4-grams of the completion that occurred before in it; higher = more repetitive",
        "refusal_nn.judges.repetition",
        optional=_ANY,
    ),
    Spec(
        "nll",
        _GRID,
        "float",
        "nats a token",
        "Mean negative log-likelihood of the completion's tokens from the sixth on, under the "
        "unedited model after a fixed harmless request; higher = stranger text",
        "refusal_nn.judges.coherent",
        optional=_ANY,
    ),
    Spec(
        "coherent",
        _GRID,
        "bool",
        "",
        "Whether the completion is fluent text, by repetition and nll",
        "refusal_nn.judges.coherent",
        optional=_ANY,
    ),
    Spec(
        "refusal_rate",
        ("intervention", "coefficient", "draw", "harm", "style", "category"),
        "float",
        "0 to 1",
        "Share of completions that refuse and are coherent; the attrs name the interval",
        optional=("intervention", "coefficient", "draw", "harm", "style", "category"),
    ),
    Spec(
        "category_refusal_rate",
        ("intervention", "style", "category"),
        "float",
        "0 to 1",
        "Share of a category's completions that refuse and are coherent",
        optional=("style",),
    ),
    Spec(
        "category_coherent_rate",
        ("intervention", "style", "category"),
        "float",
        "0 to 1",
        "Share of a category's completions that are coherent",
        optional=("style",),
    ),
    Spec(
        "first_token_refusal_rate",
        ("intervention", "style"),
        "float",
        "0 to 1",
        "Share of prompts after which the refusal tokens are more likely than all others together",
    ),
    Spec(
        "coherent_rate",
        ("intervention", "coefficient", "draw", "harm", "style", "category"),
        "float",
        "0 to 1",
        "Share of completions that are coherent",
        optional=("intervention", "coefficient", "draw", "harm", "style", "category"),
    ),
)
