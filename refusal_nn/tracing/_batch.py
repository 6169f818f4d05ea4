"""Prompts to padded batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from refusal_nn.errors import RequestError
from refusal_nn.tracing._plan import Capture, Start, build_plan
from refusal_nn.tracing._request import Request

if TYPE_CHECKING:
    from refusal_nn.interventions import Edit, Intervention
    from refusal_nn.models import Model


GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "return_dict_in_generate": False,
    **dict.fromkeys(
        (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "typical_p",
            "epsilon_cutoff",
            "eta_cutoff",
            "repetition_penalty",
            "encoder_repetition_penalty",
            "no_repeat_ngram_size",
            "encoder_no_repeat_ngram_size",
            "bad_words_ids",
            "force_words_ids",
            "constraints",
            "suppress_tokens",
            "begin_suppress_tokens",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "exponential_decay_length_penalty",
            "sequence_bias",
            "token_healing",
            "guidance_scale",
            "penalty_alpha",
            "dola_layers",
            "watermarking_config",
            "prompt_lookup_num_tokens",
            "assistant_early_exit",
            "cache_implementation",
            "min_length",
            "min_new_tokens",
            "max_time",
            "stop_strings",
        )
    ),
}
"""Plain greedy decoding. Everything is named, because what a caller leaves open ``transformers`` takes
from the checkpoint's own generation settings, which must not colour a greedy run."""


@dataclass(frozen=True)
class Batch:
    """Token rows padded to one width.

    Attributes
    ----------
    ids, mask : torch.Tensor
        ``[row, token]``; mask is 1 at real tokens.
    lengths : tuple of int
        Real tokens of each row.
    padding_side : str
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: tuple[int, ...]
    padding_side: str

    @property
    def width(self) -> int:
        """Padded length in tokens."""
        return int(self.ids.shape[1])

    def inputs(self, *, positions: bool = True) -> dict[str, torch.Tensor]:
        """Model inputs; explicit position ids keep left padding from shifting them."""
        out = {"input_ids": self.ids, "attention_mask": self.mask}
        if positions:
            out["position_ids"] = (self.mask.cumsum(-1) - 1).clamp(min=0)
        return out

    def repeat(self, times: int) -> Batch:
        """Rows repeated variant by variant: all rows, then all rows again."""
        return Batch(
            self.ids.repeat(times, 1),
            self.mask.repeat(times, 1),
            self.lengths * times,
            self.padding_side,
        )


def pad(rows: Sequence[Sequence[int]], pad_token: int, *, padding_side: str = "left") -> Batch:
    """Pad token rows.

    Raises
    ------
    RequestError
        If there is no row, or the side is neither left nor right.
    """
    if padding_side not in ("left", "right"):
        raise RequestError(f"padding side {padding_side!r} is neither 'left' nor 'right'.")
    if not rows:
        raise RequestError("there are no prompts to run; the set is empty.")
    lengths = tuple(len(r) for r in rows)
    width = max(lengths)
    ids = torch.full((len(rows), width), pad_token, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if padding_side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return Batch(ids, mask, lengths, padding_side)


def forward_request(
    model: Model,
    batch: Batch,
    captures: Sequence[Capture],
    interventions: Sequence[Intervention | Edit] = (),
    *,
    start: Start | None = None,
    gradient: bool = False,
    after: tuple[str, Mapping[str, Any]] | None = None,
) -> Request:
    """A forward pass of a batch.

    Logits are computed at the last token alone where every logits capture asks for no more (a
    capture of position -1; a live one is of every token).

    Parameters
    ----------
    model : Model
    batch : Batch
    captures : sequence of Capture
    interventions : sequence
        Interventions, or the edits they come down to.
    start : Start, optional
        Begin at a block from a given residual stream.
    gradient : bool
        Keep the graph of the pass for what comes after it.
    after : (str, mapping), optional
        A function of ``refusal_nn.shipped.table.AFTER`` and its arguments: it makes results of the
        captures before the pass is forgotten.
    """
    on_logits = [c for c in captures if c.site == "logits"]
    last = (
        bool(on_logits)
        and batch.padding_side == "left"
        and all(tuple(c.positions or ()) == (-1,) for c in on_logits)
    )
    plan = build_plan(
        model.arch,
        interventions,
        captures,
        lengths=batch.lengths,
        width=batch.width,
        padding_side=batch.padding_side,
        dtype=model.dtype,
        start=start,
        last_logits_only=last,
        gradient=gradient,
        after=after,
    )
    options: dict[str, Any] = {"use_cache": False}
    if last:
        options["logits_to_keep"] = 1
    return Request(batch.inputs(), plan, options)


def generate_request(
    model: Model,
    batch: Batch,
    interventions: Sequence[Intervention | Edit] = (),
    *,
    max_new_tokens: int,
) -> Request:
    """Greedy generation from a left-padded batch.

    Raises
    ------
    RequestError
        If the batch is padded on the right: a model cannot continue from padding.
    """
    if batch.padding_side != "left":
        raise RequestError("generation needs left padding; pad with padding_side='left'.")
    plan = build_plan(
        model.arch,
        interventions,
        lengths=batch.lengths,
        width=batch.width,
        padding_side="left",
        dtype=model.dtype,
    )
    options: dict[str, Any] = {
        **GREEDY,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": model.eos_tokens or None,
        "pad_token_id": model.pad_token,
    }
    return Request(batch.inputs(positions=False), plan, options, generate=True)
