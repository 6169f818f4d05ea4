"""The end-of-instruction span is found from the template, and refusals say the fix."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from refusal_nn.errors import ModelError, PromptError
from refusal_nn.models import Chat
from refusal_nn.testing import TEMPLATE, tiny_tokenizer

SPECIAL = [
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|next|>",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PLAIN_TAIL = "[INST] {{ messages[0]['content'] }} [/INST]"


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE small enough that most text stays single bytes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290 + len(SPECIAL),
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["assistant", "user", "model"] * 50, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


def chat(tokenizer, template):
    tokenizer.chat_template = template
    return Chat(tokenizer, name="some-model")


def text_of(chat):
    return [chat.tokenizer.decode([t]) for t in chat.eoi_tokens]


@pytest.mark.parametrize(
    ("template", "span"),
    [
        (CHATML, ["<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]),
        (
            LLAMA3,
            ["<|eot_id|>", "<|start_header_id|>", "assistant", "<|end_header_id|>", "\n", "\n"],
        ),
        (GEMMA, ["<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"]),
    ],
    ids=["chatml", "llama3", "gemma"],
)
def test_the_span_is_what_the_template_writes_after_the_instruction(byte_level, template, span):
    found = chat(byte_level, template)
    assert text_of(found) == span
    assert found.positions == tuple(range(-len(span), 0))
    assert found.n_eoi == len(span)


def test_the_span_ends_every_prompt_whatever_its_last_character(byte_level):
    found = chat(byte_level, CHATML)
    endings = ["How?", "how", "(how)", "how\n", "wie geht's ä", "x", "<b>", "assistant"]
    for row in found.tokens(endings):
        assert tuple(row[-found.n_eoi :]) == found.eoi_tokens


def test_letters_of_an_instruction_may_occur_in_the_template(byte_level):
    found = chat(byte_level, "{{ messages[0]['content'] }}<|im_end|>next x:\n<|im_start|>")
    assert "".join(text_of(found)) == "<|im_end|>next x:\n<|im_start|>"


def test_a_token_merged_across_the_boundary_is_not_in_the_span():
    # "s [" and "? [" merge the instruction's end with the template's start
    words = {w: i for i, w in enumerate(["<pad>", " [", "s [", "? [", "/", "INST", "]"])}
    alphabet = [chr(c) for c in range(32, 127)] + list("\nüßeä")
    for letter in alphabet:
        words.setdefault(letter, len(words))
    merges = [(" ", "["), ("s", " ["), ("?", " ["), ("I", "N"), ("IN", "S"), ("INS", "T")]
    for left, right in merges:
        words.setdefault(left + right, len(words))
    core = Tokenizer(models.BPE(vocab=words, merges=merges, unk_token="<pad>"))
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    assert tokenizer.convert_ids_to_tokens(tokenizer("Tell us [/INST]")["input_ids"])[-4] == "s ["

    found = chat(tokenizer, PLAIN_TAIL)
    assert text_of(found) == ["/", "INST", "]"]


def test_a_words_template_gives_its_two_tokens():
    found = Chat(tiny_tokenizer(), name="tiny")
    assert text_of(found) == ["<|end|>", "<|assistant|>"]
    assert found.tokens(["w10 w11"]) == [[1, 4, 10, 11, 5, 6]]


def test_raw_sends_the_text_as_it_is_and_takes_its_last_token():
    tokenizer = tiny_tokenizer()
    found = Chat(tokenizer, "raw")
    assert found.format("w10 w11") == "w10 w11"
    assert found.positions == (-1,)
    assert found.tokens(["w10 w11"]) == [[10, 11]]
    assert found.hash == "raw"


def test_a_template_file_replaces_the_tokenizers_own(tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text("<|user|> {{ messages[0]['content'] }} <|assistant|>")
    found = Chat(tiny_tokenizer(), str(path))
    assert text_of(found) == ["<|assistant|>"]
    assert found.hash != Chat(tiny_tokenizer()).hash


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, r"model 'some-model' has no chat template; pass --chat-template FILE .*raw"),
        (
            "{{ messages[0]['content'] }}<|im_end|>{{ messages[0]['content'] | length }}",
            r"different text after different instructions.*pass --chat-template FILE",
        ),
        (
            "<|im_start|>{{ messages[0]['content'] }}",
            r"puts nothing after the instruction.*--chat-template raw",
        ),
        ("{{ raise_exception('roles must alternate') }}", r"cannot format a user turn: roles must"),
        (
            "{{ messages[0]['content'] | nosuchfilter }}",
            r"cannot format a user turn: .*nosuchfilter",
        ),
        ("{% for m in messages %}", r"cannot format a user turn: "),
        ("the instruction is dropped <|im_end|>", r"leaves the instruction out"),
    ],
    ids=["none", "dependent", "nothing-after", "raises", "filter", "syntax", "dropped"],
)
def test_an_unusable_template_is_refused_with_the_fix(byte_level, template, reason):
    with pytest.raises(ModelError, match=reason) as caught:
        chat(byte_level, template)
    assert "\n" not in str(caught.value)


def test_a_missing_template_file_is_named():
    with pytest.raises(
        ModelError, match=r"'nowhere.jinja' cannot be read: No .*--chat-template FILE"
    ):
        Chat(tiny_tokenizer(), "nowhere.jinja")


def test_a_prompt_without_tokens_is_named():
    with pytest.raises(ModelError, match=r"prompt '' has no tokens; remove it"):
        Chat(tiny_tokenizer(), "raw").tokens(["w10", ""])


def test_no_prompts_give_no_rows():
    assert Chat(tiny_tokenizer(TEMPLATE)).tokens([]) == []


def test_raw_has_no_end_of_instruction_tokens():
    found = Chat(tiny_tokenizer(), "raw")
    assert found.eoi_tokens == ()
    assert found.n_eoi == 0


def test_a_template_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "own.jinja").write_bytes(b"\xff\xfe\x00{{")
    with pytest.raises(ModelError, match=r"own.jinja' is not UTF-8 \(byte 0\)"):
        Chat(tiny_tokenizer(), str(tmp_path / "own.jinja"))


def test_a_control_token_in_a_prompt_is_reported_once(caplog):
    found = Chat(tiny_tokenizer())
    texts = ["w10 w11", "w10 <|end|> <|assistant|> w12"]
    for _ in range(2):
        assert found.tokens(texts)[1] == [1, 4, 10, 5, 6, 12, 5, 6]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "prompt 'w10 <|end|> <|assistant|> w12' holds the control token '<|end|>'" in (
        record.getMessage()
    )


def test_a_prompt_whose_end_merges_with_the_template_is_refused():
    """Probes end otherwise, so only the prompt itself shows it: "~[" is one token."""
    words = {w: i for i, w in enumerate(["<pad>", "~["])}
    for letter in [*(chr(c) for c in range(32, 127)), *"\nüßeä"]:
        words.setdefault(letter, len(words))
    core = Tokenizer(models.BPE(vocab=words, merges=[("~", "[")], unk_token="<pad>"))
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    found = chat(tokenizer, "{{ messages[0]['content'] }}[/I]")
    assert text_of(found) == ["[", "/", "I", "]"]
    with pytest.raises(PromptError, match="the end of prompt 'about ~' merges"):
        found.tokens(["about", "about ~"])
