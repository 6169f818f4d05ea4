"""Interventions as data: what to change in a forward pass, where, and when.

Each is a small frozen dataclass that checks itself, survives a round trip through JSON (that is how
a run records what was done), and compiles to plain *edits* which :mod:`refusal_nn.tracing` applies
in the one ordered walk over the model. They compose: a list is applied in order, site by site.

Vectors may carry a leading row axis, ``[row, d_model]``: row ``i`` of the batch then gets vector
``i``, which is how a sweep over hundreds of candidate directions becomes one batch.

References
----------
Arditi et al. 2024, *Refusal in language models is mediated by a single direction*, section 2.4.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from refusal_nn.errors import InterventionError

if TYPE_CHECKING:
    from refusal_nn.models import Architecture

__all__ = [
    "ActivationAddition",
    "DirectionalAblation",
    "Edit",
    "Intervention",
    "MeanAblation",
    "Patch",
    "ZeroAblation",
    "from_json",
    "to_json",
]

WRITES = ("resid_pre", "attn_out", "mlp_out")
"""Where Arditi et al. ablate: the input of every block and what each module writes."""

_HEAD_SITES = ("q", "k", "v", "z")
_SITES = (
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_out",
    "resid_post",
)


@dataclass(frozen=True)
class Edit:
    """One operation at one site of one layer (None: outside the blocks), in the form the walk applies.

    ``operation`` is ``ablate`` (``direction``: unit vector), ``add`` (``direction``: vector) or
    ``set`` (``value``); ``args`` holds that array, or a :class:`refusal_nn.tracing.Ref` to one that
    an earlier request of the job held. ``rows``: only these rows of the batch; all when None.
    ``pick``: which row of the array each changed row of the batch takes, where many take the same
    one; row by row when None. ``plain`` holds what the operation takes as it is, references
    included.
    """

    layer: int | None
    site: str
    operation: str
    args: Mapping[str, Any]
    positions: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    when: str = "prompt"
    rows: tuple[int, ...] | None = None
    pick: tuple[int, ...] | None = None
    plain: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Intervention(ABC):
    """What every intervention shares: layers, positions, heads, time.

    Parameters
    ----------
    layers : sequence of int, optional
        Blocks to act on, 0-based; every block when None.
    positions : sequence of int, optional
        Token positions counted from the end of the prompt (-1 is the last prompt token); every
        token when None. Positions refer to the prompt, so they require ``when="prompt"``.
    heads : sequence of int, optional
        Heads to act on, at the sites that have heads (q, k, v, z).
    when : {"all", "prompt"}
        In generation: at every step, or on the prompt's own forward pass only.
    """

    layers: Sequence[int] | None = None
    positions: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    when: str = "all"

    kind: ClassVar[str]
    _arrays: ClassVar[tuple[str, ...]] = ()
    _row_arrays: ClassVar[tuple[str, ...]] = ()  # those whose first of several axes is the row

    def __post_init__(self) -> None:
        for name in ("layers", "positions", "heads"):
            value = getattr(self, name)
            if value is not None:
                _set(self, name, _ints(value, name, type(self).__name__))
        for name in self._arrays:
            _set(self, name, _array(getattr(self, name), name, type(self).__name__))
        if self.when not in ("all", "prompt"):
            raise InterventionError(
                f"{type(self).__name__}: when={self.when!r} is not 'all' or 'prompt'."
            )
        if self.positions is not None:
            if any(p >= 0 for p in self.positions):
                raise InterventionError(
                    f"{type(self).__name__}: positions count from the end of the prompt, so they "
                    f"are negative (-1 is the last prompt token); got {list(self.positions)}."
                )
            _set(self, "when", "prompt")

    def edits(self, arch: Architecture) -> Iterator[Edit]:
        """The edits this makes on a model, in any order; the walk sorts them.

        Raises
        ------
        InterventionError
            If a layer, head, site or vector does not fit the model.
        """
        for layer in self._chosen_layers(arch):
            for site in self._chosen_sites():
                self._check(arch, layer, site)
                yield Edit(
                    layer,
                    site,
                    self._operation(),
                    self._edit_args(arch, layer, site),
                    _tuple(self.positions),
                    _tuple(self.heads),
                    self.when,
                )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and to_json([self]) == to_json([other])  # type: ignore[list-item]

    def __hash__(self) -> int:
        return hash(to_json([self]))

    @abstractmethod
    def _operation(self) -> str:
        """Name of the walk's operation."""

    @abstractmethod
    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        """Arrays of the walk's operation."""

    def _chosen_sites(self) -> tuple[str, ...]:
        return (self.site,)  # type: ignore[attr-defined]

    def _chosen_layers(self, arch: Architecture) -> Sequence[int]:
        if self.layers is None:
            return range(arch.n_layers)
        for layer in self.layers:
            if not 0 <= layer < arch.n_layers:
                raise InterventionError(
                    f"{type(self).__name__}: layer {layer} is not in 0..{arch.n_layers - 1}, "
                    "the blocks of this model."
                )
        return self.layers

    def _check(self, arch: Architecture, layer: int, site: str) -> None:
        place = arch.place(site)
        if self.heads is not None:
            if not place.heads:
                raise InterventionError(
                    f"{type(self).__name__}: site {site!r} has no heads; use one of "
                    f"{', '.join(_HEAD_SITES)} or leave heads out."
                )
            for head in self.heads:
                if not 0 <= head < place.heads:
                    raise InterventionError(
                        f"{type(self).__name__}: head {head} is not in 0..{place.heads - 1}, the "
                        f"heads at {site!r}."
                    )
        width = arch.d_head if place.heads else arch.d_model
        for name in self._arrays:
            got = getattr(self, name).shape[-1]
            if got != width:
                raise InterventionError(
                    f"{type(self).__name__}: {name} has {got} components, but {site!r} of this "
                    f"model has {width}."
                )


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
    _arrays: ClassVar[tuple[str, ...]] = ("direction",)
    _row_arrays = _arrays

    def __post_init__(self) -> None:
        super().__post_init__()
        _set(self, "sites", tuple(_site(s, type(self).__name__) for s in self.sites))

    def _chosen_sites(self) -> tuple[str, ...]:
        return tuple(self.sites)

    def _operation(self) -> str:
        return "ablate"

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
    _arrays: ClassVar[tuple[str, ...]] = ("direction",)
    _row_arrays = _arrays

    def __post_init__(self) -> None:
        super().__post_init__()
        _site(self.site, type(self).__name__)
        if not np.isfinite(self.coefficient):
            raise InterventionError(
                f"ActivationAddition: coefficient is {self.coefficient}; give a finite number."
            )
        if self.layers is None:
            raise InterventionError(
                "ActivationAddition: name the layers to add at, for example layers=[best.layer]; "
                "adding at every block would apply the vector once per block."
            )

    def _operation(self) -> str:
        return "add"

    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        return {"direction": self.coefficient * self.direction}


@dataclass(frozen=True, eq=False)
class ZeroAblation(Intervention):
    """Zero ablation: set the site (or some heads, positions) to zero."""

    site: str = "attn_out"
    kind: ClassVar[str] = "zero_ablation"

    def __post_init__(self) -> None:
        super().__post_init__()
        _site(self.site, type(self).__name__)

    def _operation(self) -> str:
        return "set"

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
    _arrays: ClassVar[tuple[str, ...]] = ("mean",)

    def __post_init__(self) -> None:
        super().__post_init__()
        _site(self.site, type(self).__name__)

    def _operation(self) -> str:
        return "set"

    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        if self.mean.ndim == 1:
            return {"value": self.mean}
        layers = list(self._chosen_layers(arch))
        if len(self.mean) != len(layers):
            raise InterventionError(
                f"MeanAblation: mean has {len(self.mean)} rows for {len(layers)} layers; give one "
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
    _arrays: ClassVar[tuple[str, ...]] = ("value",)
    _row_arrays = _arrays

    def __post_init__(self) -> None:
        super().__post_init__()
        _site(self.site, type(self).__name__)
        if self.value.ndim > 2 and self.positions is None:
            raise InterventionError(
                "Patch: a value with a position axis needs positions=... to say which they are."
            )
        if self.value.ndim > 2 and self.value.shape[1] != len(self.positions or ()):
            raise InterventionError(
                f"Patch: value has {self.value.shape[1]} positions but positions names "
                f"{len(self.positions or ())}."
            )

    def _check(self, arch: Architecture, layer: int, site: str) -> None:
        super()._check(arch, layer, site)
        if self.value.ndim <= 2:
            return
        n_heads = arch.place(site).heads
        axes: tuple[int, ...] = (len(self.heads or range(n_heads)),) if n_heads else ()
        if self.value.shape[2:-1] != axes:
            raise InterventionError(
                f"Patch: value has shape {self.value.shape}, but at {site!r} a value by position is "
                f"[row, position, {'head, ' if n_heads else ''}width]"
                f"{f' with {axes[0]} heads' if n_heads else ''}."
            )

    def _operation(self) -> str:
        return "set"

    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        return {"value": self.value}


_KINDS = {
    cls.kind: cls
    for cls in (DirectionalAblation, ActivationAddition, ZeroAblation, MeanAblation, Patch)
}


def to_json(interventions: Iterable[Intervention]) -> str:
    """The interventions as JSON; :func:`from_json` gives them back exactly."""
    return json.dumps([_encode(i) for i in interventions], sort_keys=True)


def from_json(text: str) -> list[Intervention]:
    """Interventions from :func:`to_json`'s output.

    Raises
    ------
    InterventionError
        If the text is not a list of known interventions.
    """
    try:
        items = json.loads(text)
        return [_decode(item) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise InterventionError(f"not a list of interventions in JSON: {error}.") from error


def _encode(intervention: Intervention) -> dict[str, Any]:
    out: dict[str, Any] = {"kind": intervention.kind}
    for f in dataclasses.fields(intervention):
        value = getattr(intervention, f.name)
        if isinstance(value, np.ndarray):
            data = np.ascontiguousarray(value, dtype="<f8")
            value = {
                "shape": list(data.shape),
                "float64": base64.b64encode(data.tobytes()).decode("ascii"),
            }
        elif isinstance(value, tuple):
            value = list(value)
        out[f.name] = value
    return out


def _decode(item: dict[str, Any]) -> Intervention:
    fields = dict(item)
    cls = _KINDS[fields.pop("kind")]
    for name, value in fields.items():
        if isinstance(value, dict) and "float64" in value:
            raw = np.frombuffer(base64.b64decode(value["float64"]), dtype="<f8")
            fields[name] = raw.reshape(value["shape"]).copy()
    return cls(**fields)


def _set(obj: object, name: str, value: object) -> None:
    object.__setattr__(obj, name, value)  # the dataclass is frozen; this is construction


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def _ints(values: Any, name: str, owner: str) -> tuple[int, ...]:
    try:
        given = [values] if np.ndim(values) == 0 else list(values)
        out = tuple(int(v) for v in given)
        if any(v != o for v, o in zip(given, out, strict=True)):
            raise ValueError("not whole")
    except (TypeError, ValueError) as error:
        raise InterventionError(
            f"{owner}: {name} must be whole numbers, got {values!r}."
        ) from error
    if not out:
        raise InterventionError(f"{owner}: {name} is empty; leave it out to mean all of them.")
    twice = [v for i, v in enumerate(out) if v in out[:i]]
    if twice:
        raise InterventionError(f"{owner}: {name} names {twice[0]} twice; name each once.")
    return out


def _array(value: Any, name: str, owner: str) -> np.ndarray:
    if value is None:
        raise InterventionError(f"{owner}: {name} is required.")
    if hasattr(value, "detach"):  # a torch tensor, on any device and in any dtype
        value = value.detach().cpu().double().numpy()
    array = np.array(value, dtype=np.float64)
    if array.ndim == 0 or array.size == 0:
        raise InterventionError(f"{owner}: {name} must be a vector, got shape {array.shape}.")
    if not np.isfinite(array).all():
        raise InterventionError(f"{owner}: {name} contains NaN or infinity.")
    array.setflags(write=False)
    return array


def _site(site: str, owner: str) -> str:
    if site not in _SITES:
        raise InterventionError(f"{owner}: no site {site!r}; sites are {', '.join(_SITES)}.")
    return site
