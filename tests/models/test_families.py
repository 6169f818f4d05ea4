"""Families are rows: a package adds one, its models work, and a broken package costs a sentence."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
import transformers

from refusal_nn import load_model
from refusal_nn.attribution import Metric, attribute
from refusal_nn.errors import ModelError
from refusal_nn.models import Family, build_architecture
from refusal_nn.models._blocks import block_places
from refusal_nn.testing import plain_module, random_pairs, tiny_tokenizer
from refusal_nn.tracing import Capture, capture_tokens, verify

ROW = """
    from refusal_nn.models import Family

    FAMILY = Family(
        models={"renamed": "Renamed"},
        attention="mixer",
        mlp="ffn",
        attn_norm="first_norm",
        mlp_norm="second_norm",
    )
    GRANITE = Family(models={"granite": "Granite"}, attn_post_norm="input_layernorm")
"""
MODELING = """
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm

    class RenamedConfig(LlamaConfig):
        model_type = "renamed"

    class Block(nn.Module):
        def __init__(self, config, layer):
            super().__init__()
            self.mixer, self.ffn = LlamaAttention(config, layer), LlamaMLP(config)
            self.first_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
            self.second_norm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

        def forward(self, hidden_states, **kwargs):
            mixed, _ = self.mixer(hidden_states=self.first_norm(hidden_states), **kwargs)
            hidden_states = hidden_states + mixed
            return hidden_states + self.ffn(self.second_norm(hidden_states))

    class RenamedForCausalLM(LlamaForCausalLM):
        config_class = RenamedConfig

        def __init__(self, config):
            super().__init__(config)
            layers = range(config.num_hidden_layers)
            self.model.layers = nn.ModuleList(Block(config, layer) for layer in layers)
            self.post_init()

    AutoConfig.register("renamed", RenamedConfig, exist_ok=True)
    AutoModelForCausalLM.register(RenamedConfig, RenamedForCausalLM, exist_ok=True)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a package on the path, as if it were installed, with the entry points given."""

    def put(**points: str) -> None:
        site = tmp_path / "site"
        package, info = site / "otherlab", site / "otherlab-1.0.dist-info"
        for folder in (package, info):
            folder.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
        (package / "rows.py").write_text(dedent(ROW))
        (package / "modeling.py").write_text(dedent(MODELING))
        (package / "broken.py").write_text("raise ZeroDivisionError('of\\nthis package')\n")
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: otherlab\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[refusal_nn.families]", *lines]))
        monkeypatch.syspath_prepend(str(site))
        importlib.invalidate_caches()

    yield put
    for name in [name for name in sys.modules if name.partition(".")[0] == "otherlab"]:
        del sys.modules[name]


def renamed() -> torch.nn.Module:
    modeling = importlib.import_module("otherlab.modeling")
    config = modeling.RenamedConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return modeling.RenamedForCausalLM(config).eval()


def saved(module: torch.nn.Module, folder: Path) -> str:
    module.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_family_of_another_package_is_loaded_verified_and_captured(install, tmp_path):
    install(renamed="otherlab.rows:FAMILY")
    plain = renamed()
    model = load_model(saved(plain, tmp_path / "model"), device="cpu")
    verify(model)
    assert model.verified
    assert model.arch.family == "Renamed"
    assert model.arch.place("attn_in").path == "mixer"
    assert block_places(model)[1]["mlp_norm"]["path"] == "model.layers.1.second_norm"

    rows = [[7, 8, 9, 10], [11, 12, 13, 14]]
    seen = {}
    block = plain.model.layers[1]
    block.mixer.o_proj.register_forward_pre_hook(lambda _m, args: seen.update(z=args[0]))
    block.ffn.register_forward_hook(lambda _m, _args, out: seen.update(mlp_out=out))
    block.register_forward_hook(lambda _m, _args, out: seen.update(resid_post=out))
    with torch.no_grad():
        plain(torch.tensor(rows))
    found = capture_tokens(model, rows, [Capture(site, site, layers=1) for site in seen])
    for site, expected in seen.items():
        np.testing.assert_allclose(found[site].reshape(expected.shape), expected, atol=1e-5)


def test_its_edges_are_scored(install, tmp_path):
    install(renamed="otherlab.rows:FAMILY")
    model = load_model(saved(renamed(), tmp_path / "model"), device="cpu")
    pairs, metric = random_pairs(2), Metric.logit_difference([7, 8], [9, 10])
    edges = attribute(model, pairs, metric, method="eap", level="edge", check=False)
    nodes = attribute(model, pairs, metric, method="atp", level="node", check=False)
    last = edges["edge_score"].sel(src="m1", dst="logits")
    assert (last != 0).all()
    # the last MLP writes to the logits alone
    np.testing.assert_allclose(last, nodes["node_score"].sel(src="m1"), atol=1e-5)


def test_without_the_package_the_model_is_refused_and_with_it_the_row_is_listed(install):
    install()
    with pytest.raises(ModelError, match=r"Renamed: no attention module named self_attn or attn"):
        build_architecture(renamed())
    install(renamed="otherlab.rows:FAMILY")
    assert build_architecture(renamed()).place("mlp_in").path == "ffn"
    bloom = transformers.BloomConfig(vocab_size=20, hidden_size=8, n_layer=1, n_head=2)
    module = transformers.AutoModelForCausalLM.from_config(bloom)
    with pytest.raises(ModelError, match=r"or mixer; supported families are Llama, .*, Renamed\.$"):
        build_architecture(module)


def test_a_row_that_names_a_model_is_preferred_to_one_that_merely_fits(install):
    config = transformers.GraniteConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    granite = transformers.AutoModelForCausalLM.from_config(config)
    assert build_architecture(granite).place("attn_out").path == "self_attn.o_proj"
    install(granite="otherlab.rows:GRANITE")
    assert build_architecture(granite).place("attn_out").path == "input_layernorm"


def test_a_broken_package_costs_one_sentence_and_no_model(install, caplog):
    install(
        gone="otherlab.nowhere:FAMILY",
        fails="otherlab.broken:FAMILY",
        other="otherlab.rows:ROW",
        module="otherlab.rows",
        renamed="otherlab.rows:FAMILY",
    )
    with caplog.at_level(logging.WARNING, logger="refusal_nn"):
        assert build_architecture(renamed()).family == "Renamed"
    said = {record.args[0]: record.getMessage() for record in caplog.records}
    assert set(said) == {"gone", "fails", "other", "module"}
    assert all("\n" not in message for message in said.values())
    assert "ZeroDivisionError: of this package; mend or uninstall" in said["fails"]
    assert "it names a module, not a refusal_nn.models.Family" in said["module"]


def test_packages_are_not_loaded_for_a_family_that_is_built_in(install, caplog):
    install(fails="otherlab.broken:FAMILY")
    assert build_architecture(plain_module("qwen3")).family == "Qwen3"
    assert caplog.records == []
    assert "otherlab.broken" not in sys.modules


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"qkv": ("query", "key_value")}, "three projections, or one"),
        ({"interleaved": True}, "three projections, or one"),
        ({"models": ["llama"]}, "map types to names"),
    ],
)
def test_a_row_that_makes_no_sense_is_refused_when_it_is_made(wrong, said):
    with pytest.raises(ModelError, match=said):
        Family(**wrong)
