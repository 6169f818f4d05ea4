"""``capture`` and ``generate``: what they take, refuse and return."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import refusal_nn as rn
from refusal_nn import store
from refusal_nn.backends import _local
from refusal_nn.errors import BackendError, RequestError
from refusal_nn.interventions import ActivationAddition, DirectionalAblation, MeanAblation
from refusal_nn.models import BLOCK_SITES, load_model, quiet
from refusal_nn.testing import D_MODEL, N_LAYERS, tiny_model, tiny_module, tiny_tokenizer
from refusal_nn.tracing import capture, forward_request, generate, pad
from tests.directions.conftest import made_prompts

TEXTS = ["w10 w11", "w20 w21 w22", "w30", "w40 w41 w42 w43", "w50 w51", "w60"]
ROWS = np.random.default_rng(0).normal(size=(len(TEXTS), D_MODEL))


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_a_vector_a_prompt_does_not_depend_on_the_batch_size(batch_size):
    model = tiny_model("llama")
    edits = [ActivationAddition(ROWS, layers=[0]), MeanAblation(mean=ROWS[:N_LAYERS])]
    whole = capture(model, TEXTS, "resid_post", interventions=edits)
    found = capture(model, TEXTS, "resid_post", interventions=edits, batch_size=batch_size)
    np.testing.assert_allclose(found["resid_post"], whole["resid_post"], atol=1e-4)
    alone = [
        generate(model, [text], [ActivationAddition(30 * row, layers=[1])], max_new_tokens=6)[0]
        for text, row in zip(TEXTS, ROWS, strict=True)
    ]
    edits = [ActivationAddition(30 * ROWS, layers=[1])]
    assert generate(model, TEXTS, edits, max_new_tokens=6, batch_size=batch_size) == alone


def test_a_vector_a_row_of_the_batch_is_not_taken_for_one_a_prompt():
    """Three rows for six prompts would fit every batch of three, and mean another thing in each."""
    model = tiny_model("llama")
    edits = [DirectionalAblation(ROWS[:3])]
    for call in (capture, generate):
        with pytest.raises(RequestError, match="direction has 3 rows for 6 prompts"):
            call(model, TEXTS, interventions=edits, batch_size=3)


def test_out_of_memory_names_the_largest_pass_of_the_batch(monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(_local, "run_batch", full)
    model = tiny_model("llama")
    shapes = [(3, 2), (2, 5), (1, 6)]
    batches = [pad([[7] * width] * rows, model.pad_token) for rows, width in shapes]
    requests = [forward_request(model, batch, []) for batch in batches]
    with pytest.raises(BackendError, match="a batch of 2 rows of 5 tokens"):
        model.backend.run(model, requests)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": -1}, r"positions is a list of whole numbers such as [-1], not -1"),
        ({"positions": "-1"}, r"positions is a list of whole numbers such as [-1], not '-1'"),
        ({"positions": []}, "positions is empty"),
        ({"positions": [-1.5]}, "positions holds -1.5; give whole numbers"),
        ({"layers": 2}, r"layers is a list of whole numbers such as [2], not 2"),
        ({"layers": []}, "layers is empty"),
        ({"layers": [True]}, "layers holds True"),
    ],
    ids=str,
)
def test_layers_and_positions_that_are_no_list_are_named(options, message):
    with pytest.raises(RequestError, match=re.escape(message)):
        capture(tiny_model("llama"), TEXTS, **options)


def test_arrays_of_layers_and_positions_are_lists():
    found = capture(tiny_model("llama"), TEXTS, layers=np.arange(2), positions=np.array([-2, -1]))
    assert found["resid_pre"].sizes["layer"] == found["resid_pre"].sizes["position"] == 2


def test_captured_activations_can_be_saved_as_they_are(tmp_path):
    model, prompts = tiny_model("llama"), made_prompts(2).test
    found = capture(model, prompts, BLOCK_SITES, interventions=[DirectionalAblation(ROWS[0])])
    path = rn.save(found, tmp_path / "activations.zarr")
    store.verify(path)
    with store.open_runs(tmp_path)["activations"].open() as run:
        assert {*BLOCK_SITES} <= {*run.data_vars}
        assert all(run[site].attrs["long_name"] for site in BLOCK_SITES)
        assert run["k"].sizes["kv_head"] == 2
        assert run["q"].sizes["head"] == 4
        assert run.attrs["model"] == model.name
        assert run.attrs["prompts_hash"] == prompts.hash
        assert json.loads(run.attrs["interventions"])[0]["kind"] == "directional_ablation"
        np.testing.assert_array_equal(run["resid_pre"], found["resid_pre"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("greedy") / "tiny-llama"
    with quiet():
        tiny_module("llama").save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    # an end token in the midst of what the model says, so that settings of the least length matter
    said = plain_greedy(load_model(str(path), device="cpu"), 8)
    settings = json.loads((path / "generation_config.json").read_text())
    settings["eos_token_id"] = [2, said[0][4]]
    (path / "generation_config.json").write_text(json.dumps(settings))
    return path


def plain_greedy(model, max_new_tokens):
    """One forward pass a token, no ``generate``."""
    import torch

    out = []
    for row in model.chat.tokens(TEXTS):
        new: list[int] = []
        for _ in range(max_new_tokens):
            with torch.no_grad():
                logits = model.module(torch.tensor([[*row, *new]])).logits[0, -1]
            new.append(int(logits.argmax()))
            if new[-1] in model.eos_tokens:
                new.pop()
                break
        out.append(new)
    return out


SETTINGS = {
    "min_length": 60,
    "min_new_tokens": 12,
    "encoder_no_repeat_ngram_size": 1,
    "no_repeat_ngram_size": 1,
    "repetition_penalty": 5.0,
    "guidance_scale": 3.0,
    "return_dict_in_generate": True,
    "stop_strings": ["w1"],
    "do_sample": True,
    "num_beams": 3,
    "cache_implementation": "static",
}


@pytest.mark.parametrize(
    "setting", [*SETTINGS, "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"]
)
def test_a_checkpoints_generation_settings_do_not_colour_greedy_text(folder, setting):
    kept = json.loads((folder / "generation_config.json").read_text())
    model = load_model(str(folder), device="cpu")
    expected = plain_greedy(model, 8)
    assert min(map(len, expected)) < 8
    chosen = sorted({token for row in expected for token in row})
    value = SETTINGS.get(setting, chosen)
    if setting == "bad_words_ids":
        value = [[token] for token in chosen]
    try:
        changed = json.dumps({**kept, setting: value})
        (folder / "generation_config.json").write_text(changed)
        coloured = load_model(str(folder), device="cpu")
        assert getattr(coloured.module.generation_config, setting) == value
        assert generate(coloured, TEXTS, max_new_tokens=8) == expected
    finally:
        (folder / "generation_config.json").write_text(json.dumps(kept))
