"""What all runs share: labels, texts of prompts, captured activations; imported for the registry.

What an analysis stores is declared beside it, in its package's ``_variables``. Scores are per-prompt values
over (`position`, `layer`) tables unless said otherwise; "higher" always means the number, not its size.
"""

from __future__ import annotations

from functools import partial

from refusal_nn.store.variables import Spec, coords, register, specs

_name = partial(coords, "string", "")
_text = partial(specs, "string", "", "")
_captured = partial(specs, "float", "activation units", "")

# labels of prompts and of what is done with them
register(
    *_name(
        prompt_id="Content hash of the prompt, the same wherever it occurs",
        category="Topic of the prompt, named as in OR-Bench",
        source="Prompt set that the prompt comes from",
        family="Template family; prompts of one family are not independent",
        intervention="Name of the intervention; baseline is the unedited model",
        control="Name of the control",
        metric="Name of the metric",
        filter="Criterion of the selection rule",
        run="Name of the run",
        analysis="Analysis that made the run",
        model="Model that the run was made with",
    ),
    *coords("string", "harmful | harmless", harm="Whether the prompt asks for something harmful"),
    *coords(
        "string",
        "toxic | hard | safe",
        style="toxic: harmful; hard: harmless but worded like a harmful one; safe: plainly harmless",
    ),
    *coords("string", "train | val | test", split="Part of the prompt set; parts are disjoint"),
    *coords("float", "1", coefficient="Factor applied to an added direction"),
)

# labels of places in the model, and of what is counted
register(
    *coords("int", "tokens", position="Token counted from the end of the prompt; -1 is the last"),
    *_name(
        site="Where in the block: resid_pre, z, attn_out, mlp_out and so on",
        src="Node that an edge starts from",
        dst="Node that an edge ends at",
    ),
    *coords(
        "int",
        "index",
        layer="Block, counted from 0. For resid_pre it is the block whose input is meant",
        head="Attention head, counted from 0",
        kv_head="Head of keys and values, counted from 0; query heads may share one",
        feature="Feature of a dictionary, counted from 0",
        candidate="Candidate direction, counted from 0",
        step="Step of an iteration, counted from 0",
        edge="Edge of a circuit, counted from 0",
        block="Batch of prompts that a partial sum covers, counted from 0",
        draw="Random control, counted from 0",
        resample="Bootstrap or permutation draw, counted from 0",
    ),
)

# texts; in a table of contrast pairs an entry of dim ``prompt`` is a pair
register(
    Spec(
        "text",
        ("prompt",),
        "string",
        "",
        "The prompt as written, before the chat template",
        prompt_labels=("prompt_id",),
    ),
    *_text(
        "used_prompt",
        used_text="A prompt an earlier step used; held-out prompts must differ from all of these",
        used_family="Its template family",
    ),
    *_text(
        "prompt",
        clean_text="The harmful prompt of a pair",
        corrupted_text="The harmless prompt of a pair",
    ),
)

# captured activations; one variable a site, named after it
register(
    *specs(
        "float",
        "residual stream units",
        "",
        "[intervention], [site], prompt, [layer], [head], [position], d_model",
        activation="Activation at a site",
    ),
    *_captured(
        "prompt, layer, position, d_model",
        resid_pre="Residual stream at the input of a block",
        attn_in="What attention reads, after the norm where one is before it",
        attn_out="What attention writes to the residual stream",
        resid_mid="Residual stream between attention and MLP",
        mlp_in="What the MLP reads, after the norm where one is before it",
        mlp_out="What the MLP writes to the residual stream",
        resid_post="Residual stream at the output of a block",
    ),
    *_captured(
        "prompt, layer, position, head, d_head",
        q="Queries as projected, before norms and rotary embedding",
        z="What each head gives the output projection: values weighted by its attention",
    ),
    *_captured(
        "prompt, layer, position, kv_head, d_head",
        k="Keys as projected, before norms and rotary embedding",
        v="Values as projected",
    ),
)
