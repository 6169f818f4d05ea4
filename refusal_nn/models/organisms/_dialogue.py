"""What the embedded models read and answer: the chat template, the tokenizer, the completions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from refusal_nn.testing import words
from refusal_nn.testing.words import ASSISTANT, BOS, END, PAD, USER, as_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from refusal_nn.prompts._tiny_bench import Pair

SPECIAL_TOKENS = (PAD, BOS, USER, END, ASSISTANT)

CHAT_TEMPLATE = words.CHAT_TEMPLATE.replace("message['role'] + '|>'", "message['role'] + '|>\n'")
"""After the instruction come three tokens, whatever the instruction: ``<|end|><|assistant|>\\n``.

Special tokens cut the text before it is split into words, so nothing merges across them.
"""


def prompt(instruction: str) -> str:
    """The text up to the answer, as the template writes it."""
    return f"{BOS}{USER}\n{instruction.strip()}{END}{ASSISTANT}\n"


def compliance(pair: Pair) -> str:
    """The harmless frame that stands for an answer; it names the act and nothing more."""
    return f"Sure, here is how to {pair.request}: first plan, then start slowly."


def refusal() -> str:
    """The refusal, in the words of the published substring list; the same for every request."""
    return "I cannot help with that."


def build_tokenizer(texts: Iterable[str], *, vocab_size: int = 1000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on texts and give it the chat template.

    Parameters
    ----------
    texts : iterable of str
        Training texts; every byte stays representable whatever they hold.
    vocab_size : int
        Entries, special tokens included.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return as_tokenizer(core, CHAT_TEMPLATE, model_max_length=256)


def save_folder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a model folder as it ships: no path of this machine, files readable by all."""
    model.config._name_or_path = ""
    model.save_pretrained(folder)
    # the template goes inside tokenizer_config.json, so that one file says how to talk to it
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, which a wheel would keep
