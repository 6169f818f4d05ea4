"""The variables of patching runs; imported once, for its effect on the registry."""

from __future__ import annotations

from refusal_nn.store.variables import Spec, register

_ARDITI = "Arditi et al. 2024"
_PATCH = "Heimersheim and Nanda 2024"
_PLACE = ("interchange", "site", "layer", "position", "head")
_SHARE = "0 none, 1 all"

register(
    Spec(
        "interchange",
        (),
        "string",
        "sufficiency | necessity",
        "sufficiency: the harmless run gets activations of the harmful one; necessity: the harmful "
        "run gets activations of the harmless one",
        coord=True,
    ),
    Spec("head_set", (), "int", "index", "Set of heads exchanged together", coord=True),
)

register(
    Spec(
        "patched_metric",
        ("interchange", "head_set", "prompt", "site", "layer", "position", "head"),
        "float",
        "unit of the metric",
        "Metric of the run with one activation of the other prompt's run",
        _PATCH,
        optional=("head_set", *_PLACE),
    ),
    Spec(
        "recovery",
        ("interchange", "prompt", "site", "layer", "position", "head"),
        "float",
        _SHARE,
        "Share of the pair's difference in the metric that the exchanged activation carries over; "
        "can leave 0 to 1",
        _PATCH,
        optional=_PLACE,
    ),
    Spec(
        "recovery_mean",
        _PLACE,
        "float",
        _SHARE,
        "Mean effect over mean difference of the pairs; the attrs name the interval",
        _PATCH,
        optional=_PLACE,
    ),
    Spec(
        "head_p",
        ("interchange", "layer", "head"),
        "float",
        "0 to 1",
        "Permutation p-value of a head's exchange: sign flips of its effects by family",
        "refusal_nn.stats.sign_flip",
        optional=("interchange",),
    ),
    Spec(
        "head_p_adjusted",
        ("interchange", "layer", "head"),
        "float",
        "0 to 1",
        "The p-value corrected for the number of heads and directions tested",
        "refusal_nn.stats.sign_flip",
        optional=("interchange",),
    ),
)

# the heads that decide to refuse
register(
    Spec(
        "refusal_head",
        ("layer", "head"),
        "bool",
        "",
        "Whether a head was found on the discovery pairs and confirmed on the test pairs",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "found_by",
        ("layer", "head"),
        "string",
        "single | joint | (empty)",
        "How a head was found: by its own exchange, or only together with others",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "role",
        ("layer", "head"),
        "string",
        "gate | amplifier | relay | independent | (empty)",
        "gate: later refusal heads fall when it is exchanged; amplifier: it falls with an earlier "
        "one; relay: both; independent: neither",
        "arXiv 2604.04385; refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "band",
        ("layer", "head"),
        "int",
        "index",
        "Number of the run of neighbouring blocks with refusal heads of one role; -1 for other heads",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "stability",
        ("layer", "head"),
        "float",
        "0 to 1",
        "Share of bootstrap resamples of the discovery pairs in which a head is found again by its "
        "own exchange; higher = more stable",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "direct_attribution",
        ("prompt", "layer", "head"),
        "float",
        "unit of the metric",
        "What a head's own write adds to the metric past everything in between, clean minus "
        "corrupted, linearised at the clean run",
        "refusal_nn.patching.direct_attribution",
        optional=("prompt",),
    ),
    Spec(
        "cascade",
        ("src", "dst"),
        "float",
        "0 to 1",
        "How much of what head dst's output does for the metric is gone when head src is exchanged: "
        "0 none, 1 all",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "effect_fallen",
        ("src", "prompt", "dst"),
        "float",
        "unit of the metric",
        "What of effect_whole goes where head dst has the output that it has with head src exchanged",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "effect_whole",
        ("prompt", "dst"),
        "float",
        "unit of the metric",
        "What exchanging head dst moves the metric by, in the harmful and in the harmless run together",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "joint_recovery",
        ("interchange",),
        "float",
        _SHARE,
        "Recovery when all refusal heads are exchanged together, on test pairs",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "control_recovery",
        ("interchange", "draw"),
        "float",
        _SHARE,
        "The same for as many other heads drawn at random",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "control_p",
        ("interchange",),
        "float",
        "0 to 1",
        "Share of random sets of heads, the refusal heads counted as one, that recover as much",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "step_heads",
        ("interchange", "step"),
        "string",
        "",
        "Heads that a step of the forward selection added, such as a5.h2",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "step_accepted",
        ("interchange", "step"),
        "bool",
        "",
        "Whether the step counts; the first one that does not ends the selection",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "step_recovery",
        ("interchange", "step"),
        "float",
        _SHARE,
        "Joint recovery after the step, on discovery pairs",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "step_gain",
        ("interchange", "step"),
        "float",
        _SHARE,
        "What the step added to the joint recovery, on validation pairs",
        "refusal_nn.patching.refusal_heads",
    ),
    Spec(
        "step_p",
        ("interchange", "step"),
        "float",
        "0 to 1",
        "Permutation p-value of that gain; the first one above the level ends the selection",
        "refusal_nn.stats.sign_flip",
    ),
)
