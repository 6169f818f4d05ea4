"""Model folders of strangers: refused in one sentence, before memory is asked for or anything is run."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING

from refusal_nn.backends.ndif._shape import shape_of
from refusal_nn.errors import ModelError
from refusal_nn.models import Loading, _folder, load_model, quiet
from refusal_nn.models._folder import Weights, check_config, check_size
from refusal_nn.models._load import read_config
from refusal_nn.testing import tiny_module, tiny_tokenizer
from tests.patience import within


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    with quiet():
        tiny_module("llama").save_pretrained(path)
        tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def folder(whole, tmp_path, monkeypatch):
    """A copy to spoil. Nothing may ask at the terminal, and nothing may be left to the network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question at the terminal"))
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def change(folder, file, **values):
    path = folder / file
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))


def refused(folder, match, **options):
    with within(20), pytest.raises(ModelError, match=match) as caught:
        load_model(str(folder), device="cpu", **options).identity()
    text = str(caught.value)
    assert "\n" not in text
    assert str(folder) not in text
    assert len(text) < 700


SIZES = ["num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"]


@pytest.mark.parametrize(
    "size", [*SIZES, "vocab_size", "intermediate_size", "max_position_embeddings"]
)
@pytest.mark.parametrize("value", [-1, 0, 10**30, 2.5, "3", True])
def test_a_size_that_is_none_is_named(folder, size, value):
    change(folder, "config.json", **{size: value})
    refused(
        folder, rf"its config.json says {size} is '?{value}'?, but that is a whole number from 1"
    )


@pytest.mark.parametrize("values", [
    {"num_local_experts": 0}, {"num_experts": 0}, {"head_dim": 0}, {"encoder_layers": 0},
    {"vision_config": {"num_hidden_layers": 0}}, {"max_position_embeddings": 1200.0},
    {"num_hidden_layers": {"vision": 5, "language": 9}}, {"num_key_value_heads": [1, 2]},
])  # fmt: skip
def test_zero_of_what_a_model_may_lack_and_whole_floats_are_sizes(values):
    check_config({"hidden_size": 8, "vocab_size": 8, **values}, "'m'")


@pytest.mark.parametrize("values", [
    {"num_local_experts": -1}, {"head_dim": -1.0}, {"encoder_layers": "0"}, {"num_experts": 1e30},
    {"vision_config": {"num_hidden_layers": -1}}, {"max_position_embeddings": float("inf")},
])  # fmt: skip
def test_less_than_none_and_far_too_many_are_no_sizes(values):
    with pytest.raises(ModelError, match=r"but that is a whole number from [01] to"):
        check_config(values, "'m'")


@pytest.mark.parametrize(
    "start", [0, *(pytest.param(i, marks=pytest.mark.long) for i in range(1, 12))]
)
@pytest.mark.filterwarnings("ignore")
def test_what_the_library_makes_of_each_family_is_a_config(start):
    made = 0
    with quiet():
        for kind in [*sorted(CONFIG_MAPPING)[start::12], "lxmert", "granitemoehybrid"]:
            try:
                config = CONFIG_MAPPING[kind]().to_dict()
            except Exception:  # some need arguments
                continue
            check_config(config, kind)
            made += 1
    assert made > 40


@pytest.mark.parametrize(
    "size", [*SIZES, "vocab_size", "intermediate_size", "head_dim", "num_labels"]
)
@pytest.mark.parametrize("value", [10**9, 10**7, 9_999])
def test_a_size_that_the_weights_do_not_have_asks_for_no_memory(folder, size, value):
    if size == "num_labels" and value == 9_999:
        pytest.skip("a model may have so many labels")
    change(folder, "config.json", **{size: value})
    refused(folder, r"config\.json (says|declares|describes)|cannot be loaded|not complete")


CONFIGS = {
    "list": ("[]", r"its config.json is a JSON list, not an object"),
    "number": ("5", r"its config.json is a JSON int, not an object"),
    "empty": ("", r"its config.json is not JSON \(line 1"),
    "deep": ("[" * 5000 + "]" * 5000, r"its config.json is nested too deeply"),
    "digits": ('{"hidden_size": ' + "7" * 5000 + "}", r"its config.json is not JSON"),
    "latin": (b'{"model_type": "\xff"}', r"its config.json is not UTF-8 \(byte 16\)"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_config_that_is_none_is_refused(folder, name, file):
    content, reason = CONFIGS[name]
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(folder, reason.replace("config.json", file))


@pytest.mark.parametrize(("values", "reason"), [
    ({"model_type": "nosuch"}, r"model type `nosuch`"),
    ({"model_type": ...}, r"cannot be loaded: .*model_type"),
    ({"model_type": 5}, r"model_type in its config.json is no text"),
    ({"model_type": "mamba"}, r"keeps its blocks at none of|cannot be loaded"),
    ({"model_type": "mine", "auto_map": {"AutoConfig": "a.B"}}, r"pass --trust-remote-code if you"),
    ({"attn_implementation": "someone/kernel"}, r"asks for code of the hub \(attn_implementation\)"),
    ({"dtype": "float7"}, r"cannot be loaded"),
    ({"rms_norm_eps": "x"}, r"cannot be loaded: .*rms_norm_eps"),
    ({"hidden_act": "nosuch"}, r"cannot be loaded: .*nosuch"),
    ({"rope_parameters": "x"}, r"cannot be loaded"),
    ({"quantization_config": 5}, r"cannot be loaded"),
    ({"intermediate_size": 40}, r"sizes of its weights are not those that its config.json describes"),
])  # fmt: skip
def test_a_config_of_something_else_is_refused(folder, values, reason):
    change(folder, "config.json", **values)
    refused(folder, reason)


@pytest.mark.parametrize(("values", "reason"), [
    ({"tokenizer_class": 5}, r"cannot be loaded"),
    ({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["a.B", None]}}, r"pass --trust-remote-"),
    ({"vocab_file": "/etc/passwd"}, r"names a file outside the folder \(vocab_file\)"),
    ({"tokenizer_file": "/dev/zero"}, r"names a file outside the folder \(tokenizer_file\)"),
    ({"source_spm": "/etc/passwd"}, r"names a file outside the folder \(source_spm\)"),
    ({"vocab_file": "../tiny/config.json"}, r"names a file outside the folder"),
    ({"model_max_length": "x"}, r"cannot be loaded"),
    ({"eos_token": 5}, r"cannot be loaded"),
    ({"added_tokens_decoder": 5}, r"cannot be loaded"),
])  # fmt: skip
def test_a_tokenizer_config_of_something_else_is_refused(folder, values, reason):
    change(folder, "tokenizer_config.json", **values)
    refused(folder, reason)


@pytest.mark.parametrize("key", ["special_tokens_map_file", "name_or_path"])
def test_a_path_that_older_libraries_wrote_and_none_opens_is_left_alone(folder, tmp_path, key):
    there = tmp_path / "special_tokens_map.json"
    there.write_text("no tokens")
    change(folder, "tokenizer_config.json", **{key: str(there)})
    assert load_model(str(folder), device="cpu").name == "tiny"


@pytest.mark.parametrize("ends", ["x", [1, "x"], 1.5, {}, 10**20, True])
def test_ends_of_completions_are_whole_numbers(folder, ends):
    change(folder, "generation_config.json", eos_token_id=ends)
    refused(folder, r"generation_config.json says eos_token_id is .*correct it|cannot be loaded")


TOKENIZERS = {
    "list": [],
    "model": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
    "empty": {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}},
    "panic": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "/////w=="}},
    "regex": {"normalizer": {"type": "Replace", "pattern": {"Regex": "["}, "content": ""}},
    "nan": {"model": {"type": "Unigram", "vocab": [["a", float("nan")]], "unk_id": 7}},
}  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_damaged_tokenizer_is_refused(folder, name, capfd):
    path, values = folder / "tokenizer.json", TOKENIZERS[name]
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(values if isinstance(values, list) else whole | values))
    refused(folder, r"cannot be loaded|cannot read a prompt|has no tokens")
    assert "panicked" not in capfd.readouterr().err


def test_a_tokenizer_nested_in_itself_is_refused(folder):
    (folder / "tokenizer.json").write_text('{"model": ' + "[" * 100_000)
    refused(folder, r"cannot be loaded")


@pytest.mark.parametrize("file", [
    "config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json", "chat_template.jinja",
    "generation_config.json", "special_tokens_map.json", "anything.txt",
])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_in_a_folder_is_refused(folder, file, kind):
    (folder / file).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(folder / file)
    else:
        (folder / file).symlink_to("/dev/zero")
    refused(folder, rf"'{file}' in it is a pipe or a device, not a plain file")


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"]
)
def test_a_file_of_a_gigabyte_of_nothing_is_refused(folder, file):
    with (folder / file).open("wb") as opened:
        opened.truncate(1 << 30)
    refused(folder, r"is larger than|is damaged")


def test_links_into_a_folder_of_blobs_are_followed_as_the_hub_makes_them(folder, tmp_path):
    (tmp_path / "blobs").mkdir()
    for file in [*folder.iterdir()]:
        blob = file.rename(tmp_path / "blobs" / f"0{file.name}")
        file.symlink_to(os.path.relpath(blob, folder))
    assert load_model(str(folder), device="cpu").name == "tiny"


def header(content, data=b"\0" * 64, length=None):
    written = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(written) if length is None else length) + written + data


def tensor(dtype="F32", shape=(16,), offsets=(0, 64)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


WEIGHTS = {
    "nothing": b"",
    "short": b"abc",
    "longest": header({}, length=2**63),
    "overflow": header({}, length=2**64 - 1),
    "no-json": header(b"{" * 100),
    "deep": header(b"[" * 5000),
    "overlap": header(
        {"a": tensor(shape=[4], offsets=[0, 16]), "b": tensor(shape=[4], offsets=[8, 24])}
    ),
    "dtype": header({"a": tensor("Q7")}),
    "huge": header({"a": tensor(shape=[2**40, 2**40])}),
    "negative": header({"a": tensor(shape=[-1])}),
    "cut": header({"a": tensor(shape=[1000], offsets=[0, 4000])}),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_damaged_weights_are_named(folder, name):
    (folder / "model.safetensors").write_bytes(WEIGHTS[name])
    refused(folder, r"'model.safetensors' is damaged \(.*\); download it again")


def test_pickled_weights_are_not_opened(folder):
    (folder / "model.safetensors").unlink()
    marker = folder / "ran"
    (folder / "pytorch_model.bin").write_bytes(
        b"cos\nmkdir\n(S'" + str(marker).encode() + b"'\ntR."
    )
    refused(
        folder,
        r"holds pickled weights only \('pytorch_model.bin'\), which can run code .*convert them",
    )
    assert not marker.exists()


def test_pickled_weights_beside_safetensors_are_left_alone(folder):
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load_model(str(folder), device="cpu").name == "tiny"


@pytest.mark.parametrize(("index", "reason"), [
    ([], r"is a JSON list, not an object"),
    ({}, r"maps no tensor to a file"),
    ({"weight_map": {"a": 5}}, r"maps no tensor to a file"),
    ({"weight_map": {"a": "../../x.safetensors"}}, r"names '../../x.safetensors', which is no safetensors"),
    ({"weight_map": {"a": "/etc/passwd"}}, r"names '/etc/passwd', which is no safetensors"),
    ({"weight_map": {"a": "x.bin"}}, r"names 'x.bin', which is no safetensors"),
    ({"weight_map": {"a": "x.safetensors"}}, r"'x.safetensors' is missing, which"),
])  # fmt: skip
def test_an_index_names_files_of_the_folder_alone(folder, index, reason):
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, reason)


def test_shards_named_by_an_index_are_read(whole, folder):
    module = tiny_module("llama")
    (folder / "model.safetensors").unlink()
    with quiet():
        module.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    assert load_model(str(folder), device="cpu").n_layers == 3


def test_an_adapter_is_refused_before_its_base_is_asked_for(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    refused(folder, r"is an adapter \(adapter_config.json\)")


@pytest.mark.parametrize("name", [
    "x" * 5000, "a/" + "b" * 5000, "http://host/model", "https://hub/org/name", "a/..", "..a/b", "a\0b",
    "a b/c", "org/na\nme", "hub:org/name", "a/b.git", "a--b/c", "", "org/", "/", "-a/b", "~nobody/x", "é/b",
])  # fmt: skip
@pytest.mark.parametrize("backend", ["local", "ndif", "dry-run"])
def test_what_cannot_be_a_model_never_reaches_the_network(name, backend, monkeypatch):
    def asked(*_, **__):
        raise AssertionError("something was looked for")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", asked)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", asked)
    with pytest.raises(ModelError) as caught:
        load_model(name, backend=backend)
    assert len(str(caught.value)) < 500


def test_a_file_is_no_model(whole):
    with pytest.raises(ModelError, match=r"is a file, not a folder; give the folder"):
        load_model(str(whole / "config.json"))


def test_a_folder_goes_before_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent.parent)
    (folder.parent.parent / "org").mkdir(exist_ok=True)
    shutil.rmtree("org/name", ignore_errors=True)
    shutil.copytree(folder, "org/name")
    assert load_model("org/name", device="cpu").name == "name"


def test_weights_that_no_memory_holds_are_refused(monkeypatch):
    module = tiny_module("llama")
    monkeypatch.setattr(_folder, "total_memory", lambda device: 1000)
    with pytest.raises(
        ModelError, match=r"needs 0.0 GB for its weights alone, and cpu has 0.0 GB in all"
    ):
        check_size("'m'", module, None, "cpu")
    check_size("'m'", module, None, None)
    with torch.device("meta"):
        wide = torch.nn.Linear(10**6, 10**6)
    wide.config = module.config
    with pytest.raises(
        ModelError, match=r"describes 1,000,001,000,000 weights, but its files hold 10;"
    ):
        check_size("'m'", wide, Weights(1, 10), "cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="reads of /proc")
def test_loading_leaves_the_limits_and_the_trace_of_the_process(folder):
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()
    load_model(str(folder), device="cpu").identity()
    assert (resource.getrlimit(resource.RLIMIT_AS), sys.gettrace()) == before


@pytest.mark.parametrize(("values", "reason"), [
    ({"num_hidden_layers": 10**9}, r"its config.json says num_hidden_layers is 1000000000"),
    ({"hidden_size": -1}, r"its config.json says hidden_size is -1"),
    ({"attn_implementation": "someone/kernel"}, r"asks for code of the hub \(attn_implementation\)"),
])  # fmt: skip
@pytest.mark.parametrize("read", [read_config, shape_of])
def test_a_config_of_the_hub_is_looked_at_before_a_model_is_built(
    folder, read, values, reason, monkeypatch
):
    change(folder, "config.json", **values)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", pytest.fail)
    # as a hub id, of which no folder was looked at before
    reading = {"revision": None, "trust_remote_code": False, "attn_implementation": None}
    with within(20), pytest.raises(ModelError, match=reason):
        read(Loading("org/name", str(folder), reading=reading))
