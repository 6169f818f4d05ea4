"""The variables of patching runs; imported once, for its effect on the registry."""

from __future__ import annotations

from functools import partial

from refusal_nn.store.variables import Spec, register, specs

_PATCH = "Heimersheim and Nanda 2024"
_HEADS = "refusal_nn.patching.refusal_heads"
_PLACE = "[interchange], [site], [layer], [position], [head]"
_STEP = "[interchange], step"

_metric = partial(specs, "float", "unit of the metric")
_share = partial(specs, "float", "0 none, 1 all")
_p_value = partial(specs, "float", "0 to 1", "refusal_nn.stats.sign_flip")

# of the heads that decide to refuse
_verdict = partial(specs, "bool", "", _HEADS)
_joint = partial(_share, _HEADS)
_frequency = partial(specs, "float", "0 to 1", _HEADS)

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
    *_metric(
        _PATCH,
        "[interchange], prompt, [head_set], [site], [layer], [position], [head]",
        patched_metric="Metric of the run with one activation of the other prompt's run",
    ),
    *_share(
        _PATCH,
        "[interchange], prompt, [site], [layer], [position], [head]",
        recovery="Share of the pair's difference in the metric that the exchanged activation carries "
        "over; can leave 0 to 1",
    ),
    *_share(
        _PATCH,
        _PLACE,
        recovery_mean="Mean effect over mean difference of the pairs; the attrs name the interval",
    ),
    *_p_value(
        "[interchange], layer, head",
        head_p="Permutation p-value of a head's exchange: sign flips of its effects by family",
        head_p_adjusted="The p-value corrected for the number of heads and directions tested",
    ),
)

# the heads that decide to refuse
register(
    *_verdict(
        "layer, head",
        refusal_head="Whether a head was found on the discovery pairs and confirmed on the test pairs",
    ),
    *specs(
        "string",
        "single | joint | (empty)",
        _HEADS,
        "layer, head",
        found_by="How a head was found: by its own exchange, or only together with others",
    ),
    *specs(
        "string",
        "gate | amplifier | relay | independent | (empty)",
        f"arXiv 2604.04385; {_HEADS}",
        "layer, head",
        role="gate: later refusal heads fall when it is exchanged; amplifier: it falls with an earlier "
        "one; relay: both; independent: neither",
    ),
    *specs(
        "int",
        "index",
        _HEADS,
        "layer, head",
        band="Number of the run of neighbouring blocks with refusal heads of one role; -1 for other "
        "heads",
    ),
    *_frequency(
        "layer, head",
        stability="Share of bootstrap resamples of the discovery pairs in which a head is found again "
        "by its own exchange; higher = more stable",
    ),
    *_metric(
        "refusal_nn.patching.direct_attribution",
        "[prompt], layer, head",
        direct_attribution="What a head's own write adds to the metric past everything in between, "
        "clean minus corrupted, linearised at the clean run",
    ),
    *_frequency(
        "src, dst",
        cascade="How much of what head dst's output does for the metric is gone when head src is "
        "exchanged: 0 none, 1 all",
    ),
    *_metric(
        _HEADS,
        "src, prompt, dst",
        effect_fallen="What of effect_whole goes where head dst has the output that it has with head "
        "src exchanged",
    ),
    *_metric(
        _HEADS,
        "prompt, dst",
        effect_whole="What exchanging head dst moves the metric by, in the harmful and in the harmless "
        "run together",
    ),
    *_joint(
        "interchange",
        joint_recovery="Recovery when all refusal heads are exchanged together, on test pairs",
    ),
    *_joint(
        "interchange, draw",
        control_recovery="The same for as many other heads drawn at random",
    ),
    *_frequency(
        "interchange",
        control_p="Share of random sets of heads, the refusal heads counted as one, that recover as "
        "much",
    ),
    *specs(
        "string",
        "",
        _HEADS,
        _STEP,
        step_heads="Heads that a step of the forward selection added, such as a5.h2",
    ),
    *_verdict(
        _STEP,
        step_accepted="Whether the step counts; the first one that does not ends the selection",
    ),
    *_joint(
        _STEP,
        step_recovery="Joint recovery after the step, on discovery pairs",
        step_gain="What the step added to the joint recovery, on validation pairs",
    ),
    *_p_value(
        _STEP,
        step_p="Permutation p-value of that gain; the first one above the level ends the selection",
    ),
)
