"""How a model is addressed: its chat template and where an instruction ends in it.

The *end-of-instruction span* is the run of template tokens after the instruction, the same whatever
the instruction was; directions are extracted at those tokens. It is found from the template itself
and checked on instructions with different endings, because tokens may merge across the boundary
(the first token of Llama 2's `` [/INST]`` depends on the instruction, so it does not belong to the
span).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from typing import Any

from refusal_nn._files import quoted, read_text
from refusal_nn.errors import ModelError, PromptError
from refusal_nn.models._rendering import (
    MAX_OUTPUT,
    MAX_TEMPLATE,
    Unbounded,
    bounded,
    check_template,
)

_PROBES = (
    "Tell me a story",
    "What is 2 + 2?",
    "Explain rain.",
    "List the planets, in order (all 8)",
    "Grüße aus München",
    "say yes",
    "Translate: 'chat'",
    "x",
)
_SENTINEL = "Zq7Qz"
_SHOWN = 60
_NEEDS = (
    "pass --chat-template FILE (a Jinja template), or --chat-template raw to send text as it is"
)

_log = logging.getLogger(__name__)


class Chat:
    """The template of one model.

    Parameters
    ----------
    tokenizer : transformers tokenizer
    template : str, optional
        ``"raw"`` (no template, so no span), a path to a Jinja template, or None for the tokenizer's
        own.
    name : str
        The model's name, for messages.

    Attributes
    ----------
    eoi_tokens : tuple of int
        Token ids of the end-of-instruction span; empty without a template.

    Raises
    ------
    ModelError
        If there is no template, it cannot be read, or it has no span after the instruction.
    """

    def __init__(self, tokenizer: Any, template: str | None = None, *, name: str = "") -> None:
        self.tokenizer = tokenizer
        self.raw = template == "raw"
        self._template: str | None = None
        if template is not None and not self.raw:
            try:
                self._template = read_text(
                    template, what="chat template", limit=MAX_TEMPLATE, error=ModelError
                )
            except ModelError as error:
                raise ModelError(f"{str(error).rstrip('.')}; {_NEEDS}.") from error
        elif not self.raw:
            self._template = _own(tokenizer, name)
        self._control = self._control_tokens()
        self._warned: set[str] = set()
        if self._template is not None:
            self._check(self._template)
        self.eoi_tokens = () if self.raw else self._find_span(name)

    @property
    def n_eoi(self) -> int:
        """Number of end-of-instruction tokens."""
        return len(self.eoi_tokens)

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions of the span from the end of the prompt: ``-n, ..., -1``; else the last token."""
        return tuple(range(-max(1, self.n_eoi), 0))

    @property
    def hash(self) -> str:
        """SHA-256 of the template, first 16 hex digits; ``"raw"`` without one."""
        if self._template is None:
            return "raw"
        return hashlib.sha256(self._template.encode()).hexdigest()[:16]

    def format(self, instruction: str) -> str:
        """The prompt for one instruction, up to where the model's answer begins."""
        if self.raw:
            return instruction

        def render() -> Any:
            return self.tokenizer.apply_chat_template(
                [{"role": "user", "content": instruction}],
                chat_template=self._template,
                add_generation_prompt=True,
                tokenize=False,
            )

        try:
            return bounded(render, MAX_OUTPUT + 4 * len(instruction))
        except Unbounded as error:
            raise ModelError(f"the chat template is refused: {error}; {_NEEDS}.") from error
        except Exception as error:
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise ModelError(f"the chat template cannot format a user turn: {reason}.") from error

    def _check(self, template: str) -> None:
        try:
            template.encode()
            check_template(template)
        except Unbounded as error:
            raise ModelError(f"the chat template is refused: {error}; {_NEEDS}.") from error
        except UnicodeEncodeError as error:
            raise ModelError(
                f"the chat template holds half of a character, which is no text; {_NEEDS}."
            ) from error
        except Exception as error:  # a template that is none, nested too deeply
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise ModelError(
                f"the chat template cannot format a user turn: {reason}; {_NEEDS}."
            ) from error

    def tokens(self, instructions: Sequence[str]) -> list[list[int]]:
        """Token ids of each formatted prompt, unpadded.

        A control token written in an instruction, such as ``<|end|>``, is read by the model as what
        it is; that is done as asked, and logged as a warning once a prompt.

        Raises
        ------
        ModelError
            If a prompt has no tokens.
        PromptError
            If a prompt does not end with the end-of-instruction span.
        """
        rows = self._tokens(instructions)
        for text, row in zip(instructions, rows, strict=True):
            if self.n_eoi and tuple(row[-self.n_eoi :]) != self.eoi_tokens:
                raise PromptError(
                    f"the end of prompt {_quote(text)} merges with the tokens of the chat template after "
                    "it, so it has no end-of-instruction span; remove it."
                )
            self._warn_of_control(text)
        return rows

    def _tokens(self, instructions: Sequence[str]) -> list[list[int]]:
        if not instructions:
            return []
        texts = [self.format(i) for i in instructions]
        # a template writes its own special tokens; raw text gets the tokenizer's
        try:
            ids = self.tokenizer(texts, add_special_tokens=self.raw)["input_ids"]
        except BaseException as error:  # of a damaged tokenizer: of no common type
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split())[:300].rstrip(".")
            raise ModelError(
                f"the tokenizer cannot read a prompt ({type(error).__name__}: {reason}); give the "
                "model's own tokenizer files."
            ) from error
        for text, row in zip(instructions, ids, strict=True):
            if not row:
                raise ModelError(f"prompt {_quote(text)} has no tokens; remove it.")
        return [list(row) for row in ids]

    def _find_span(self, name: str) -> tuple[int, ...]:
        rows = self._tokens(_PROBES)
        # a made-up word is in no template, as the letters and words of the other probes may be
        _, found, after = self.format(_SENTINEL).rpartition(_SENTINEL)
        if not found:
            raise ModelError(f"the chat template of {name!r} leaves the instruction out; {_NEEDS}.")
        if not all(self.format(p).endswith(after) for p in _PROBES):
            raise ModelError(
                f"the chat template of {name!r} writes different text after different instructions, "
                "so it has no end-of-instruction span; pass --chat-template FILE."
            )
        span: list[int] = []
        for column in zip(*(reversed(row) for row in rows), strict=False):
            if len(set(column)) != 1:
                break
            span.insert(0, column[0])
        # probes could share their own last tokens: the span must lie in the template's text
        while span and not _inside(self.tokenizer.decode(span), after):
            span.pop(0)
        if not span:
            raise ModelError(
                f"the chat template of {name!r} puts nothing after the instruction, so there is no "
                "end-of-instruction token; pass --chat-template raw to use the last prompt token."
            )
        return tuple(span)

    def _control_tokens(self) -> re.Pattern[str] | None:
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        texts = sorted({str(token) for token in added if token.special}, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def _warn_of_control(self, text: str) -> None:
        found = self._control.search(text) if self._control is not None else None
        if found is not None and text not in self._warned:
            self._warned.add(text)
            _log.warning(
                "prompt %s holds the control token %r, which the model reads as such and not as text; "
                "remove it if that is not meant",
                _quote(text),
                found[0],
            )


def _own(tokenizer: Any, name: str) -> str:
    """The tokenizer's own template; of several, the one for plain chats."""
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        found = found.get("default")
    if not found or not isinstance(found, str):
        raise ModelError(f"model {quoted(name)} has no chat template; {_NEEDS}.")
    return found


def _quote(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1].rstrip()}…")


def _inside(decoded: str, after: str) -> bool:
    return decoded.strip() in after.strip() or decoded in after
