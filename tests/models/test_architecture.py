"""The map names the parts of a model it knows, and refuses one it does not."""

from __future__ import annotations

import pytest
import transformers

from refusal_nn.errors import ModelError
from refusal_nn.models import BLOCK_SITES, SITES, build_architecture
from refusal_nn.testing import (
    D_HEAD,
    D_MODEL,
    FAMILIES,
    N_HEADS,
    N_LAYERS,
    PARALLEL,
    VOCABULARY,
    plain_module,
    tiny_model,
    tiny_module,
    wrap,
)
from refusal_nn.tracing import residual_error, verify

KV_HEADS = {"phi": 2, "gpt2": 4, "neox": 4, "neox_sequential": 4}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sizes_are_read_from_the_model(family):
    arch = build_architecture(plain_module(family))
    assert (arch.n_layers, arch.d_model, arch.vocab_size) == (N_LAYERS, D_MODEL, VOCABULARY)
    assert (arch.n_heads, arch.d_head) == (N_HEADS, D_HEAD)
    assert arch.n_kv_heads == KV_HEADS.get(family, 2)
    assert arch.parallel == (family in PARALLEL)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_but_resid_mid_of_a_parallel_block_is_mapped(family):
    arch = build_architecture(plain_module(family))
    missing = {"resid_mid"} if family in PARALLEL else set()
    assert set(arch.sites) == set(SITES) - missing
    for site in set(BLOCK_SITES) - missing:
        module = plain_module(family).get_submodule(
            f"{arch.block(0)}.{arch.place(site).path}".rstrip(".")
        )
        assert module is not None


@pytest.mark.parametrize("family", PARALLEL)
def test_a_parallel_block_says_why_it_has_no_resid_mid(family):
    with pytest.raises(
        ModelError, match=r"no site 'resid_mid': its attention and MLP run in paral"
    ):
        build_architecture(plain_module(family)).place("resid_mid")


def test_an_unknown_site_lists_those_there_are():
    arch = build_architecture(plain_module("llama"))
    with pytest.raises(ModelError, match=r"no site 'hidden': sites are embed, resid_pre, .*logits"):
        arch.place("hidden")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            transformers.OPTConfig(
                vocab_size=20,
                hidden_size=8,
                ffn_dim=8,
                num_hidden_layers=1,
                num_attention_heads=2,
                word_embed_proj_dim=8,
                max_position_embeddings=8,
            ),
            r"OPTForCausalLM keeps its blocks at none of model\.layers, .*supported families are Llama",
        ),
        (
            transformers.BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=2),
            r"Bloom: no attention module named self_attn or attn.*supported families are Llama",
        ),
        (
            transformers.GPTJConfig(
                vocab_size=20, n_positions=8, n_embd=16, n_layer=1, n_head=2, rotary_dim=4
            ),
            r"GPTJ.*supported",
        ),
    ],
    ids=["opt", "bloom", "gptj"],
)
def test_an_unknown_layout_is_refused_in_one_sentence(config, reason):
    module = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match=reason) as caught:
        build_architecture(module)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_adds_up_on_the_map(family):
    error = residual_error(tiny_model(family))
    assert error.shape == (N_LAYERS,)
    assert error.max() < 1e-6


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "olmo2"])
@pytest.mark.parametrize(("site", "wrong"), [("attn_out", "self_attn.o_proj"), ("mlp_out", "mlp")])
def test_a_wrong_map_is_refused_by_the_first_trace(family, site, wrong):
    from dataclasses import replace

    model = wrap(tiny_module(family), name="doctored")
    places = {**model.arch.places, site: replace(model.arch.places[site], path=wrong)}
    model.arch = replace(model.arch, places=places)
    with pytest.raises(
        ModelError, match=r"'doctored' \(Gemma|Olmo.*does not fit our map"
    ) as caught:
        verify(model)
    assert "this architecture is not supported" in str(caught.value)
    assert not model.verified


def test_a_model_that_scales_what_it_writes_is_refused():
    """Granite has Llama's module tree, but multiplies what each branch adds."""
    config = transformers.GraniteConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        residual_multiplier=0.5,
        pad_token_id=0,
    )
    model = wrap(transformers.AutoModelForCausalLM.from_config(config).eval(), name="granite")
    with pytest.raises(ModelError, match=r"at block \d, resid_post differs from"):
        verify(model)


def test_the_check_runs_once():
    model = wrap(tiny_module("llama"))
    verify(model)
    assert model.verified
    del model.nnsight  # a second check would need it
    verify(model)
