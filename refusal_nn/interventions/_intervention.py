"""What every intervention is: a frozen description that compiles to the edits a walk applies."""

from __future__ import annotations

import base64
import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from refusal_nn.errors import InterventionError
from refusal_nn.models.sites import BLOCK_SITES, HEAD_SITES

if TYPE_CHECKING:
    from refusal_nn.models import Architecture


@dataclass(frozen=True)
class Edit:
    """One operation at one site of one layer (None: outside the blocks), in the form the walk applies.

    ``operation`` is ``ablate`` (``direction``: unit vector), ``add`` (``direction``: vector), ``set``
    (``value``) or ``call``; ``args`` holds that array, or a :class:`refusal_nn.tracing.Ref` to one
    that an earlier request of the job held. ``rows``: only these rows of the batch; all when None.
    ``pick``: which row of the array each changed row of the batch takes, where many take the same
    one; row by row when None. ``plain`` holds what the operation takes as it is, references
    included; of ``call`` that is all: ``function``, its ``args`` and its ``name``.
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
                set_field(self, name, whole(value, name, type(self).__name__))
        for name in self._arrays:
            set_field(self, name, vector(getattr(self, name), name, type(self).__name__))
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
            set_field(self, "when", "prompt")

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
                    plain=self._edit_plain(),
                )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Intervention) or type(self) is not type(other):
            return False
        return self._text() == other._text()

    def __hash__(self) -> int:
        return hash(self._text())

    def _text(self) -> str:
        return json.dumps(self.encode(), sort_keys=True)

    def encode(self) -> dict[str, Any]:
        """As plain data for JSON: ``kind`` and the fields."""
        out: dict[str, Any] = {"kind": self.kind}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
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

    @abstractmethod
    def _operation(self) -> str:
        """Name of the walk's operation."""

    @abstractmethod
    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        """Arrays of the walk's operation."""

    def _edit_plain(self) -> dict[str, Any]:
        """What the walk's operation takes as it is."""
        return {}

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
                    f"{', '.join(HEAD_SITES)} or leave heads out."
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


def set_field(obj: object, name: str, value: object) -> None:
    """Set a field while the object is made."""
    object.__setattr__(obj, name, value)  # the dataclass is frozen; this is construction


def _tuple(values: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(values)


def whole(values: Any, name: str, owner: str) -> tuple[int, ...]:
    """Whole numbers, each named once, from one or several."""
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


def vector(value: Any, name: str, owner: str) -> np.ndarray:
    """A finite array of float64 that nobody can change."""
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


def check_site(site: str, owner: str) -> str:
    """The site, if there is one of this name."""
    if site not in BLOCK_SITES:
        raise InterventionError(f"{owner}: no site {site!r}; sites are {', '.join(BLOCK_SITES)}.")
    return site
