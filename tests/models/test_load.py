"""``load_model`` reads what it is given, and says in one sentence what it cannot read."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import normalizers

from refusal_nn.errors import ModelError, RequestError
from refusal_nn.models import load_model
from refusal_nn.testing import FAMILIES, plain_module, tiny_module, tiny_tokenizer
from refusal_nn.tracing import Capture, capture_tokens

ROWS = [[7, 8, 9], [10, 11, 12, 13]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "tiny-llama", tiny_module("llama"))


def save(path, module, tokenizer=None):
    from refusal_nn.models import quiet

    with quiet():
        module.save_pretrained(path)
        (tokenizer or tiny_tokenizer()).save_pretrained(path)
    return path


def test_a_folder_gives_the_model_that_was_saved(folder):
    model = load_model(str(folder), device="cpu")
    assert model.name == "tiny-llama"
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    (found,) = capture_tokens(model, ROWS, [Capture("l", "logits", positions=(-1,))]).values()
    for row, logits in zip(ROWS, found, strict=True):
        with torch.no_grad():
            expected = plain_module("llama")(torch.tensor([row])).logits[0, -1].numpy()
        np.testing.assert_allclose(logits[0], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", torch.float16])
def test_the_dtype_asked_for_is_loaded(folder, dtype):
    model = load_model(str(folder), device="cpu", dtype=dtype)
    assert str(model.dtype).endswith(str(dtype).removeprefix("torch."))


def test_the_weights_hash_tells_models_apart_and_nothing_of_the_machine(folder, tmp_path):
    one = load_model(str(folder), device="cpu")
    same = load_model(str(save(tmp_path / "copy", tiny_module("llama"))), device="cpu")
    other = load_model(str(save(tmp_path / "other", tiny_module("llama", seed=1))), device="cpu")
    assert one.weights_hash == same.weights_hash != other.weights_hash
    assert str(folder.parent) not in json.dumps(one.identity())
    assert set(one.identity()) >= {"model", "weights_hash", "template_hash", "dtype", "device"}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_whole_checkpoint_of_every_family_is_complete(family, tmp_path):
    model = load_model(str(save(tmp_path / family, tiny_module(family))), device="cpu")
    found = model.module.state_dict()
    for name, value in tiny_module(family).state_dict().items():
        assert torch.equal(found[name], value), name


def test_tied_embeddings_are_not_missing(tmp_path):
    module = tiny_module("llama", tie_word_embeddings=True)
    model = load_model(str(save(tmp_path / "tied", module)), device="cpu")
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight


def test_a_folder_is_called_by_its_own_name_wherever_one_stands(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert load_model(".", device="cpu").name == "tiny-llama"


def lower_case(path, tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


def other_pad(path, tokenizer):
    tokenizer.eos_token = "<pad>"


def other_end(path, tokenizer):
    settings = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [2, 5]}))


@pytest.mark.parametrize("change", [lower_case, other_pad, other_end])
def test_the_tokenizer_hash_tells_what_changes_tokens_or_ends_completions(folder, tmp_path, change):
    tokenizer = tiny_tokenizer()
    path = save(tmp_path / "tiny-llama", tiny_module("llama"))
    change(path, tokenizer)
    tokenizer.save_pretrained(path)
    one = load_model(str(folder), device="cpu").identity()
    other = load_model(str(path), device="cpu").identity()
    assert {k for k in one if one[k] != other[k]} == {"tokenizer_hash"}


def test_the_tokenizer_hash_does_not_depend_on_the_last_call(folder):
    before = load_model(str(folder), device="cpu").tokenizer_hash
    model = load_model(str(folder), device="cpu")
    model.tokenizer(["w10", "w10 w11"], padding=True, truncation=True, max_length=4)
    assert model.tokenizer_hash == before


def test_weights_need_no_gradient(folder):
    model = load_model(str(folder), device="cpu")
    assert not any(p.requires_grad for p in model.module.parameters())
    assert not model.module.training


def nan_weights(path):
    module = tiny_module("llama")
    module.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    return str(save(path, module))


def infinite_weights(path):
    module = tiny_module("llama")
    module.lm_head.weight.data[0, :2] = torch.tensor([float("inf"), float("-inf")])
    return str(save(path, module))


def no_config(path):
    path.mkdir()
    return str(path)


def broken_config(path):
    path.mkdir()
    (path / "config.json").write_text("{")
    return str(path)


def no_weights(path):
    save(path, tiny_module("llama"))
    (path / "model.safetensors").unlink()
    return str(path)


def truncated_weights(path):
    save(path, tiny_module("llama"))
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:1000])
    return str(path)


def no_tokenizer(path):
    tiny_module("llama").save_pretrained(path)
    return str(path)


def tensors_changed(path, change):
    from safetensors.torch import load_file, save_file

    save(path, tiny_module("llama"))
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


def no_last_block(path):
    return tensors_changed(
        path, lambda t: [t.pop(key) for key in [*t] if key.startswith("model.layers.2.")]
    )


def one_tensor_gone(path):
    return tensors_changed(path, lambda t: t.pop("model.norm.weight"))


def unknown_bias(path):
    return tensors_changed(
        path, lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})
    )


def fewer_layers(path):
    save(path, tiny_module("llama"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    return str(path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (nan_weights, r"not finite \(NaN or infinity in model\.layers\.1\.mlp\.up_proj.*again"),
        (infinite_weights, r"not finite \(NaN or infinity in lm_head"),
        (no_config, r"holds no config\.json; give a folder written by save_pretrained"),
        (broken_config, r"cannot be loaded"),
        (no_weights, r"cannot be loaded: .*model\.safetensors"),
        (truncated_weights, r"cannot be loaded: "),
        (no_tokenizer, r"cannot be loaded: .*tokenizer"),
        (
            no_last_block,
            r"not complete: model\.layers\.2\..* and \d+ more are missing from its files",
        ),
        (one_tensor_gone, r"not complete: model\.norm\.weight are missing from its files"),
        (fewer_layers, r"not complete: model\.layers\.2\..* in its files but not in the model"),
        (unknown_bias, r"layers\.0\.self_attn\.q_proj\.bias are in its files but not"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_a_bad_folder_is_refused_in_one_sentence(make, reason, tmp_path):
    source = make(tmp_path / "bad")
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(source, device="cpu")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value) or make is no_config


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("tiny-refuserr", {}, r"unknown model 'tiny-refuserr': embedded models are tiny-refuser"),
        ("./nowhere", {}, r"no model folder at '\./nowhere'; check the path"),
        ("/no/such/folder", {}, r"no model folder at '/no/such/folder'"),
        ("a/b/c", {}, r"no model folder at 'a/b/c'"),
        ("x", {"backend": "cloud"}, r"unknown backend 'cloud'; backends are local, ndif, dry-run"),
    ],
)
def test_a_name_that_is_no_model_is_refused(name, options, reason):
    with pytest.raises(RequestError, match=reason):
        load_model(name, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float8"}, r"unknown dtype 'float8'; use one of float32, float64, bfloat16"),
        ({"device": "gpu9"}, r"unknown device 'gpu9'; use cpu, cuda, cuda:1 or auto"),
        ({"device": "meta"}, r"device 'meta' holds no weights to run; use cpu"),
    ],
)
def test_an_unknown_option_lists_what_is_allowed(folder, options, reason):
    with pytest.raises(RequestError, match=reason):
        load_model(str(folder), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_with_the_fix(folder):
    with pytest.raises(RequestError, match=r"PyTorch sees no GPU; use --device cpu"):
        load_model(str(folder), device="cuda")


def test_a_hub_id_offline_is_refused_in_one_sentence(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"'no-such-org/no-such-model' cannot be loaded") as caught:
        load_model("no-such-org/no-such-model", device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("first", ["nnsight", "refusal_nn.models"])
def test_import_order_with_nnsight_does_not_matter(first):
    code = (
        f"import {first}, refusal_nn.models, nnsight, torch, anyio._backends._asyncio\n"
        "assert hasattr(torch.zeros(1), 'save')"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
