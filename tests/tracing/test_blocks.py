"""What shipped code is told of a block, and the models it is refused for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from torch import nn

from refusal_nn.errors import InterventionError, ModelError
from refusal_nn.models._architecture import build_architecture
from refusal_nn.models._blocks import block_places
from refusal_nn.testing import FAMILIES, N_LAYERS, tiny_model, tiny_module, wrap
from refusal_nn.tracing import Capture

NORMS = {
    "llama": ("input_layernorm", "post_attention_layernorm", None),
    "gpt2": ("ln_1", "ln_2", None),
    "neox": ("input_layernorm", "post_attention_layernorm", None),
    "phi": ("input_layernorm", "input_layernorm", None),
    "gemma2": ("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm"),
    "olmo2": (None, None, "post_attention_layernorm"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_reader_of_every_block_has_a_projection(family):
    arch = tiny_model(family).arch
    places = block_places(tiny_model(family))
    assert len(places) == N_LAYERS
    for place in places:
        parts = [part for module in place["projections"] for part in module["parts"]]
        assert [part["site"] for part in parts] == ["q", "k", "v"]
        assert [part["heads"] for part in parts] == [arch.n_heads, *[arch.n_kv_heads] * 2]
        assert place["writer"]["transposed"] == (family == "gpt2")


@pytest.mark.parametrize("family", NORMS)
def test_norms_are_those_that_the_block_reads_and_writes_through(family):
    model = tiny_model(family)
    place = block_places(model)[1]
    found = [place["attn_norm"], place["mlp_norm"], {"path": place["writer"]["post_norm"]}]
    names = [f"{model.arch.block(1)}.{n}" if n else None for n in NORMS[family]]
    assert [norm and norm["path"] for norm in found] == names
    kind = "layer" if family in ("gpt2", "neox", "phi") else "rms"
    assert all(norm["kind"] == kind for norm in found[:2] if norm)


def test_a_norm_of_a_kind_we_do_not_know_is_refused():
    module = tiny_module("llama")
    module.model.layers[2].input_layernorm = nn.Identity()
    with pytest.raises(ModelError, match=r"layers\.2\.input_layernorm' is a Identity"):
        block_places(wrap(module))


def test_an_attention_bias_in_front_of_a_norm_is_refused():
    module = tiny_module("olmo2", attention_bias=True)
    with pytest.raises(ModelError, match="bias in front of a norm"):
        block_places(wrap(module))


def test_places_are_found_without_weights():
    module = tiny_module("llama").to("meta")
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    model = SimpleNamespace(arch=build_architecture(module), module=module, n_layers=N_LAYERS)
    assert block_places(model) == block_places(tiny_model("llama"))


def test_a_live_capture_is_the_whole_tensor():
    assert Capture("x", "logits", positions=(-1,), live=True).live
    with pytest.raises(InterventionError, match="capture 'x' is live"):
        Capture("x", "mlp_out", positions=(-1,), live=True)
    with pytest.raises(InterventionError, match="capture 'x' is live"):
        Capture("x", "mlp_out", live=True, keep=True)
