"""The interventions that have a name: ablations, addition, patching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from refusal_nn.interventions._intervention import Intervention, set_field
from refusal_nn.models.sites import WRITES

if TYPE_CHECKING:
    from refusal_nn.models import Architecture


@dataclass(frozen=True, eq=False)
class DirectionalAblation(Intervention):
    """Directional ablation: remove the component along a direction, ``x - (x . r) r``.

    Parameters
    ----------
    direction : array, ``[d_model]`` or ``[row, d_model]``
        Need not be unit: it is divided by its norm, or by 1e-8 where the norm is smaller, so that a
        direction which is zero up to rounding does nothing instead of ablating rounding noise (the
        published code divides by ``norm + 1e-8`` to the same end, which leaves 2e-8 of the
        component of a unit direction in place).
    sites : sequence of str
        Default: the input of every block and what attention and MLP write to the residual stream.

    References
    ----------
    Arditi et al. 2024, equation 4.
    """

    direction: Any = None
    sites: Sequence[str] = WRITES
    kind: ClassVar[str] = "directional_ablation"
    _operation: ClassVar[str] = "ablate"
    _arrays: ClassVar[tuple[str, ...]] = ("direction",)
    _row_arrays = _arrays

    def __post_init__(self) -> None:
        set_field(self, "sites", tuple(self.sites))
        super().__post_init__()

    def _chosen_sites(self) -> Sequence[str]:
        return self.sites

    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        norm = np.linalg.norm(self.direction, axis=-1, keepdims=True)
        return {"direction": self.direction / np.maximum(norm, 1e-8)}


@dataclass(frozen=True, eq=False)
class ActivationAddition(Intervention):
    """Activation addition: ``x + coefficient * v`` with the vector as given (not normalised).

    Parameters
    ----------
    direction : array, ``[d_model]`` or ``[row, d_model]``
    coefficient : float
        +1 adds the difference in means (induces refusal), -1 subtracts it.
    site : str
        Default ``resid_pre``: the input of the block, where the direction was extracted.

    References
    ----------
    Arditi et al. 2024, equation 3.
    """

    direction: Any = None
    coefficient: float = 1.0
    site: str = "resid_pre"
    kind: ClassVar[str] = "activation_addition"
    _operation: ClassVar[str] = "add"
    _arrays: ClassVar[tuple[str, ...]] = ("direction",)
    _row_arrays = _arrays

    def __post_init__(self) -> None:
        super().__post_init__()
        if not np.isfinite(self.coefficient):
            raise self._error(f"coefficient is {self.coefficient}; give a finite number.")
        if self.layers is None:
            raise self._error(
                "name the layers to add at, for example layers=[best.layer]; "
                "adding at every block would apply the vector once per block."
            )

    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        return {"direction": self.coefficient * self.direction}


@dataclass(frozen=True, eq=False)
class ZeroAblation(Intervention):
    """Zero ablation: set the site (or some heads, positions) to zero."""

    site: str = "attn_out"
    kind: ClassVar[str] = "zero_ablation"
    _operation: ClassVar[str] = "set"

    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        return {"value": np.zeros(arch.d_head if arch.place(site).heads else arch.d_model)}


@dataclass(frozen=True, eq=False)
class MeanAblation(Intervention):
    """Mean ablation: set the site to a mean activation.

    Parameters
    ----------
    mean : array, ``[width]`` or ``[layer, width]``
        One mean, or one for each of ``layers`` (all blocks when ``layers`` is None); ``width`` is
        ``d_model``, or ``d_head`` at a site with heads.
    """

    mean: Any = None
    site: str = "attn_out"
    kind: ClassVar[str] = "mean_ablation"
    _operation: ClassVar[str] = "set"
    _arrays: ClassVar[tuple[str, ...]] = ("mean",)

    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        if self.mean.ndim == 1:
            return {"value": self.mean}
        layers = list(self._chosen_layers(arch))
        if len(self.mean) != len(layers):
            raise self._error(
                f"mean has {len(self.mean)} rows for {len(layers)} layers; give one "
                "row a layer, or a single vector."
            )
        return {"value": self.mean[layers.index(layer)]}


@dataclass(frozen=True, eq=False)
class Patch(Intervention):
    """Activation patching: set the site to an activation taken from another run.

    Parameters
    ----------
    value : array, ``[width]``, ``[row, width]`` or ``[row, position, (head,) width]``
        The activation to put in: one vector, one a row, or one for each of ``positions`` of every
        row. Given by position at a site with heads, it has a head axis too, as long as ``heads``
        (all of them when ``heads`` is None).

    References
    ----------
    Heimersheim and Nanda 2024, *How to use and interpret activation patching*.
    """

    value: Any = None
    site: str = "resid_pre"
    kind: ClassVar[str] = "patch"
    _operation: ClassVar[str] = "set"
    _arrays: ClassVar[tuple[str, ...]] = ("value",)
    _row_arrays = _arrays

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.value.ndim > 2 and self.positions is None:
            raise self._error(
                "a value with a position axis needs positions=... to say which they are."
            )
        if self.value.ndim > 2 and self.value.shape[1] != len(self.positions or ()):
            raise self._error(
                f"value has {self.value.shape[1]} positions but positions names "
                f"{len(self.positions or ())}."
            )

    def _check(self, arch: Architecture, layer: int, site: str) -> None:
        super()._check(arch, layer, site)
        if self.value.ndim <= 2:
            return
        n_heads = arch.place(site).heads
        axes: tuple[int, ...] = (len(self.heads or range(n_heads)),) if n_heads else ()
        if self.value.shape[2:-1] != axes:
            raise self._error(
                f"value has shape {self.value.shape}, but at {site!r} a value by position is "
                f"[row, position, {'head, ' if n_heads else ''}width]"
                f"{f' with {axes[0]} heads' if n_heads else ''}."
            )
