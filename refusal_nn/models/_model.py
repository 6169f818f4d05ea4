"""A loaded model with everything the analyses ask of it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch

from refusal_nn.models._architecture import Architecture
from refusal_nn.models._chat import Chat
from refusal_nn.models._hashes import tokenizer_hash

if TYPE_CHECKING:
    from refusal_nn.models._backend import Backend


@dataclass(eq=False)
class Model:
    """A causal language model, mapped and ready to trace.

    Attributes
    ----------
    name : str
        As the user gave it; the folder's name for a local folder.
    nnsight : nnsight.modeling.transformers.TransformersModel
        The wrapped model, for a user's own traces.
    arch : Architecture
        Where its parts are.
    device : torch.device
        Of its parameters; the CPU where they are on a server.
    backend : Backend
        Where its jobs run; ``backend.name`` is ``local``, ``ndif`` or ``dry-run``. On an NDIF server
        ``module`` has a shape and no weights.
    source : str
        What it was loaded from: a folder or a hub id.
    verified : bool
        Whether a trace has shown that the residual stream adds up on the map.
    lock : threading.RLock
        Held while a trace runs: one nnsight model cannot be traced from two threads.
    """

    name: str
    source: str
    nnsight: Any
    tokenizer: Any
    arch: Architecture
    dtype: torch.dtype
    device: torch.device
    backend: Backend
    revision: str | None = None
    chat_template: str | None = None
    weights_hash: str = ""
    verified: bool = False
    lock: Any = field(default_factory=threading.RLock, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """In a trace that is sent elsewhere, ``model`` is its nnsight model and its sizes.

        So a trace may say ``model.nnsight.…`` in its body; everything else of this object (lock,
        tokenizer, our classes) belongs to this process.
        """
        sizes = {k: getattr(self, k) for k in ("name", "n_layers", "n_heads", "d_model", "d_head")}
        return SimpleNamespace, (), {"nnsight": self.nnsight, **sizes}

    @property
    def remote(self) -> Any:
        """Old name of ``backend``, None where that is not ndif."""
        warnings.warn("Model.remote is now Model.backend.", DeprecationWarning, stacklevel=2)
        return self.backend if self.backend.name == "ndif" else None

    @property
    def module(self) -> torch.nn.Module:
        """The plain PyTorch model."""
        return cast(torch.nn.Module, self.nnsight._module)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.arch.n_layers

    @property
    def n_heads(self) -> int:
        """Number of query heads in a block."""
        return self.arch.n_heads

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.arch.d_model

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.arch.d_head

    @cached_property
    def chat(self) -> Chat:
        """The chat template and its end-of-instruction span.

        Raises
        ------
        ModelError
            If the model has no template and none was given.
        """
        return Chat(self.tokenizer, self.chat_template, name=self.name)

    @property
    def eos_tokens(self) -> list[int]:
        """Token ids that end a completion."""
        eos = getattr(getattr(self.module, "generation_config", None), "eos_token_id", None)
        if eos is None:
            eos = self.tokenizer.eos_token_id
        if eos is None:
            return []
        return [int(e) for e in ([eos] if isinstance(eos, int) else eos)]

    @cached_property
    def tokenizer_hash(self) -> str:
        """16 hex digits of the whole tokenizer and of the tokens that end a completion."""
        return tokenizer_hash(self.tokenizer, self.eos_tokens)

    @property
    def pad_token(self) -> int:
        """Token id used for padding; masked, so its value does not matter if the model has it."""
        found = [self.tokenizer.pad_token_id, *self.eos_tokens]
        return next((int(i) for i in found if i is not None and 0 <= i < self.arch.vocab_size), 0)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def identity(self) -> dict[str, Any]:
        """What a run records of the model: enough to tell two models apart, no path."""
        return {
            "model": self.name,
            "revision": self.revision or "",
            "weights_hash": self.weights_hash,
            "tokenizer_hash": self.tokenizer_hash,
            "template_hash": self.chat.hash,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.backend.device or self.device.type,
            "backend": self.backend.name,
        }
