"""How work on prompts is cut into batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from refusal_nn.errors import RequestError

if TYPE_CHECKING:
    from refusal_nn.models import Model
    from refusal_nn.prompts import Pairs, Prompts


def rows_per_pass(model: Model) -> int:
    """Default number of rows in a forward pass: many for small models, 32 from 2 k wide on.

    A small model's pass costs its fixed overhead, so rows are nearly free; a large one's memory
    is rows times width.
    """
    return max(32, min(256, (1 << 16) // model.d_model))


def rows_asked(model: Model, batch_size: int | None) -> int:
    """Rows in a forward pass: as asked for, else the default.

    Raises
    ------
    RequestError
        If fewer than one is asked for.
    """
    if batch_size is None:
        return rows_per_pass(model)
    if batch_size < 1:
        raise RequestError(f"batch size must be at least 1, got {batch_size}.")
    return int(batch_size)


def batches_of(n: int, size: int, dim: str) -> list[dict[str, slice]]:
    """Regions of ``size`` along ``dim``, the last one shorter."""
    if size < 1:
        raise RequestError(f"batch size must be at least 1, got {size}.")
    return [{dim: slice(a, min(a + size, n))} for a in range(0, n, size)]


def grid_of(
    outer: Sequence[Mapping[str, slice]], inner: Sequence[Mapping[str, slice]]
) -> list[dict[str, slice]]:
    """Regions over both: all of ``inner`` in the first of ``outer``, and so on."""
    return [{**a, **b} for a in outer for b in inner]


def prompt_labels(prompts: Prompts | Pairs) -> dict[str, Any]:
    """The coordinates of a set of prompts or pairs over dim ``prompt``."""
    return {str(name): label for name, label in prompts.to_dataset().coords.items()}
