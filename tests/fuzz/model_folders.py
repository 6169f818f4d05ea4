"""Model folders: copies of the embedded ones, most with something changed."""

from __future__ import annotations

import json
import struct
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.cases import Case, Step
from tests.fuzz.commands import FAMILIES, world
from tests.fuzz.hostile import on_bytes, on_file, on_json, texts, values

PICKLE = b'cbuiltins\nexec\n(S\'open("PWNED", "w").close()\'\ntR.'
"""A pickle that writes a file where it is loaded."""
CODE = "open('PWNED', 'w').close()\n"
_COMMANDS = (
    "models show m",
    "models show m --json",
    "models show ./m --dtype float64",
    "models show m --chat-template raw",
    "models show m --chat-template template.jinja",
    "models show m --chat-template m/chat.jinja",
    "direction extract --model m --prompts prompts.jsonl --refusal-tokens I --split train",
    "direction extract --model m --prompts prompts.jsonl --json",
    "attribute --model m --pairs pairs.jsonl --refusal-tokens I --level node --split train",
)
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    *(
        "n_layer",
        "n_head",
        "n_embd",
        "n_positions",
        "n_inner",
        "num_experts",
        "num_experts_per_tok",
    ),
    *("sliding_window", "layer_types", "query_pre_attn_scalar", "moe_intermediate_size"),
    "rms_norm_eps",
    "rope_theta",
    "rope_parameters",
    "pad_token_id",
    "eos_token_id",
    "bos_token_id",
)
_WORDS: dict[str, tuple[Any, ...]] = {
    "model_type": ("gpt2", "bert", "t5", "nonsense", "", 3, None, "vit", "mamba", "../x"),
    "architectures": (
        [],
        ["BertModel"],
        ["Nonsense"],
        "LlamaForCausalLM",
        None,
        ["LlamaForCausalLM"] * 2,
    ),
    "dtype": ("float8", "int8", "complex64", "bfloat16", "nonsense", 3),
    "torch_dtype": ("float16", "os.system", 1),
    "hidden_act": ("nonsense", None, "os.system", ["silu"]),
    "auto_map": (
        {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
        {"AutoModelForCausalLM": "owner/name--code.Model"},
        {"AutoModelForCausalLM": "../../code.Model"},
        "code.Model",
    ),
    "quantization_config": (
        {"quant_method": "bitsandbytes"},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "nonsense"},
        {},
    ),
    "attn_implementation": ("flash_attention_2", "nonsense", "owner/kernel"),
    "_attn_implementation": ("flash_attention_2", "owner/kernel"),
    "tie_word_embeddings": (True, "yes", None),
    "attention_bias": (True,),
    "rope_scaling": ({"type": "nonsense"}, {"rope_type": "yarn", "factor": -1}, 4),
}
_TEMPLATES = (
    "{% for i in range(999999999) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'x' * 999999999 }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch PWNED') }}",
    "{% include '/etc/hostname' %}",
    "{% import 'os' as os %}",
    "{{ messages[0].content",
    "{% endif %}",
    "{{ raise_exception('no\x1b[2J') }}",
    "{{ 1 / 0 }}",
    "{{ undefined.attribute }}",
    "{{ messages }}",
    "",
    " ",
    "constant",
    "{{ messages[0].content }}",
    "{{ messages[0].content }}\x1b[2J",
    "{{ messages[0]['content'] | upper }} end",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% set x = [] %}{% for i in range(10) %}{{ x.append(i) or '' }}{% endfor %}{{ x }}",
    "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "{% if true %}" * 300 + "{% endif %}" * 300,
    "{{ strftime_now('%s' * 1000) }}",
)


def _put(file: str, key: str, value: Any) -> Step:
    return ("put", file, 0, (key,), value)


def _header(meta: Any, n: int | None = None, tail: bytes = b"") -> bytes:
    text = json.dumps(meta).encode()
    return struct.pack("<Q", len(text) if n is None else n) + text + tail


@st.composite
def _weights(draw: Any) -> list[Step]:
    """Weights that are not what their header says, or not safetensors."""
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    key, value = draw(
        st.sampled_from(
            [
                *(("dtype", v) for v in ("F99", "BOOL", "F8_E4M3", 3, None)),
                *(("shape", v) for v in ([-1], [2**62], [10**20], [], [[4]], "4", [4.5])),
                *(("data_offsets", v) for v in ([16, 0], [0, 2**63], [-4, 16], [0], [0, 15], None)),
            ]
        )
    )
    odd = _header({"model.embed_tokens.weight": {**tensor, key: value}}, None, b"\0" * 16)
    plain = [
        _header({}),
        _header({"a": tensor}, None, b"\0" * 16),
        _header({"a": tensor}, 2**40),
        _header({"a": tensor}, 2**63 + 1),
        _header({"__metadata__": {"format": "pt\x1b[2J"}, "a": tensor}, None, b"\0" * 16),
        _header({"__metadata__": "x"}),
        _header([1, 2]),
        struct.pack("<Q", 5) + b"{\xff\xfe}x",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        PICKLE,
        b"PK\x03\x04" + b"\0" * 30,
        odd,
    ]
    how = draw(st.sampled_from(["header", "header", "pickle", "index", "both"]))
    if how == "header":
        return [("write", "m/model.safetensors", draw(st.sampled_from(plain)))]
    if how == "pickle":
        name = draw(
            st.sampled_from(
                ["pytorch_model.bin", "model.pt", "pytorch_model.pth", "training_args.bin"]
            )
        )
        return [("instead", "m/model.safetensors", 0, "gone"), ("write", f"m/{name}", PICKLE)]
    if how == "both":
        return [("write", "m/pytorch_model.bin", PICKLE)]
    goal = draw(
        st.sampled_from(
            [
                "../prompts.jsonl",
                "/dev/zero",
                "missing.safetensors",
                "pytorch_model.bin",
                "pipe",
                "",
                "..",
                3,
            ]
        )
    )
    index = {
        "metadata": {},
        "weight_map": {"model.embed_tokens.weight": goal, "lm_head.weight": goal},
    }
    return [
        ("move", "m/model.safetensors", "m/model-00001-of-00001.safetensors"),
        ("write", "m/pytorch_model.bin", PICKLE),
        ("make", "m/pipe", "pipe"),
        (
            "write",
            "m/model.safetensors.index.json",
            json.dumps(draw(st.sampled_from([index, {}, [], {"weight_map": []}]))),
        ),
    ]


@st.composite
def _mutation(draw: Any) -> list[Step]:
    how = draw(
        st.sampled_from(
            ["size"] * 4
            + ["word"] * 3
            + ["json"] * 3
            + ["template"] * 3
            + ["weights"] * 4
            + ["bytes", "file", "file", "code", "tokens"]
        )
    )
    if how == "size":
        return [_put("m/config.json", draw(st.sampled_from(_SIZES)), draw(values()))]
    if how == "word":
        key = draw(st.sampled_from(sorted(_WORDS)))
        return [
            _put("m/config.json", key, draw(st.sampled_from(_WORDS[key]))),
            ("write", "m/code.py", CODE),
        ]
    if how == "json":
        return [draw(on_json("m/*.json"))]
    if how == "template":
        text = draw(st.one_of(st.sampled_from(_TEMPLATES), st.sampled_from(_TEMPLATES), texts()))
        where = draw(st.sampled_from(["config", "file", "beside", "named"]))
        if where == "config":
            return [_put("m/tokenizer_config.json", "chat_template", text)]
        if where == "named":
            named = [{"name": "default", "template": text}, {"name": "x"}]
            return [_put("m/tokenizer_config.json", "chat_template", named)]
        if where == "beside":
            return [
                ("write", "m/additional_chat_templates/a.jinja", text),
                ("write", "m/chat.jinja", text),
            ]
        return [("write", "m/chat_template.jinja", text), ("write", "m/chat.jinja", text)]
    if how == "weights":
        return list(draw(_weights()))
    if how == "bytes":
        return [draw(on_bytes("m/*"))]
    if how == "file":
        return [draw(on_file("m/*"))]
    if how == "tokens":
        key = draw(
            st.sampled_from(
                [
                    "tokenizer_class",
                    "eos_token",
                    "pad_token",
                    "model_max_length",
                    "added_tokens_decoder",
                    "auto_map",
                ]
            )
        )
        return [_put("m/tokenizer_config.json", key, draw(values()))]
    return [
        ("write", "m/modeling_llama.py", CODE),
        ("write", "m/tokenization_x.py", CODE),
        _put("m/tokenizer_config.json", "auto_map", {"AutoTokenizer": ["tokenization_x.T", None]}),
        _put(
            "m/tokenizer_config.json",
            "tokenizer_class",
            draw(st.sampled_from(["T", "LlamaTokenizer"])),
        ),
    ]


@st.composite
def cases(draw: Any) -> Case:
    """A model folder and a command that loads it."""
    model = draw(st.sampled_from(["planted-gate"] * 4 + ["tiny-refuser", *FAMILIES]))
    steps: list[Any] = [
        *world(),
        ("copy", model, "m"),
        ("write", "m/chat.jinja", "{{ messages[0].content }}"),
    ]
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 1, 2, 3]))):
        steps += draw(_mutation())
    return Case("models", tuple(draw(st.sampled_from(_COMMANDS)).split()), tuple(steps))
