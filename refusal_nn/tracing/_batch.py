"""Prompts to padded batches, and what is asked of one.

A *job* is a list of requests, each one pass or one generation of a batch. Requests of a job run in
order, and a later one may use what an earlier one *held* (a ``Ref`` in its plan), so that a baseline
never has to leave the machine it was computed on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from refusal_nn.errors import RequestError
from refusal_nn.tracing._limits import check_length
from refusal_nn.tracing._plan import Capture, Start, build_plan

if TYPE_CHECKING:
    from refusal_nn.interventions import Edit, Intervention
    from refusal_nn.models import Model
    from refusal_nn.shipped.plans import PlainRequest, Plan


NOT_OF_DECODING = {
    "_from_model_config",
    "transformers_version",
    "bos_token_id",
    "decoder_start_token_id",
    "max_length",
}
"""What ``transformers`` keeps among its generation settings that no greedy run is coloured by."""


@cache
def plain_greedy() -> dict[str, Any]:
    """Settings of plain greedy decoding.

    Everything is named, because what a caller leaves open ``transformers`` takes from the
    checkpoint's own generation settings, which must not colour a greedy run.
    """
    from transformers import GenerationConfig

    return {
        **dict.fromkeys(sorted(vars(GenerationConfig()).keys() - NOT_OF_DECODING)),
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "use_cache": True,
        "return_dict_in_generate": False,
    }


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


def of_rows(interventions: Iterable[Intervention], part: slice, n: int) -> list[Intervention]:
    """The interventions for a batch of a set of ``n`` prompts.

    Parameters
    ----------
    interventions : iterable of Intervention
        For the whole set. An array with a row axis has one row a prompt.
    part : slice
        The prompts of the batch.
    n : int
        Prompts of the set.

    Raises
    ------
    RequestError
        If an array has another number of rows than there are prompts.
    """
    out = []
    for intervention in interventions:
        found = {name: getattr(intervention, name) for name in intervention._row_arrays}
        arrays = {name: array for name, array in found.items() if array.ndim > 1}
        for name, array in arrays.items():
            if len(array) != n:
                raise RequestError(
                    f"{type(intervention).__name__}: {name} has {len(array)} rows for {n} prompts; "
                    "give one vector, or one a prompt."
                )
        cut = {name: array[part] for name, array in arrays.items()}
        out.append(replace(intervention, **cut) if cut else intervention)
    return out


@dataclass(frozen=True)
class Request:
    """One batch.

    Parameters
    ----------
    inputs : mapping
        ``input_ids``, ``attention_mask``, ``position_ids``; tensors ``[row, token]``.
    plan : Plan
        From ``build_plan``.
    options : mapping
        Arguments of the model's forward or generate.
    generate : bool
        Generate instead of one forward pass; the result is then ``{"ids": [row, token]}``, the new
        tokens.
    """

    inputs: Mapping[str, torch.Tensor]
    plan: Plan
    options: Mapping[str, Any] = field(default_factory=dict)
    generate: bool = False

    def plain(self, device: torch.device | None = None) -> PlainRequest:
        """The form that ships, its inputs on a device."""
        return {
            "inputs": {name: x.to(device) for name, x in self.inputs.items()},
            "plan": self.plan,
            "options": dict(self.options),
            "generate": self.generate,
        }


Results = list[dict[str, torch.Tensor]]


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

    Raises
    ------
    PromptError
        If a row is longer than the model's context.
    """
    check_length(model, max(batch.lengths))
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
        batch=batch,
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
    PromptError
        If a row, with its completion, is longer than the model's context.
    """
    if batch.padding_side != "left":
        raise RequestError("generation needs left padding; pad with padding_side='left'.")
    check_length(model, max(batch.lengths), max_new_tokens)
    plan = build_plan(model.arch, interventions, batch=batch, dtype=model.dtype)
    options: dict[str, Any] = {
        **plain_greedy(),
        "max_new_tokens": max_new_tokens,
        "eos_token_id": model.eos_tokens or None,
        "pad_token_id": model.pad_token,
    }
    return Request(batch.inputs(positions=False), plan, options, generate=True)
