"""What every intervention is: a frozen description that compiles to the edits a walk applies."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections import Counter
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
    positions: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    when: str = "prompt"
    rows: tuple[int, ...] | None = None
    pick: tuple[int, ...] | None = None
    plain: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Intervention:
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
    _operation: ClassVar[str]
    """What the walk does; see :class:`Edit`."""
    _arrays: ClassVar[tuple[str, ...]] = ()
    _row_arrays: ClassVar[tuple[str, ...]] = ()  # those whose first of several axes is the row

    def __post_init__(self) -> None:
        for name in ("layers", "positions", "heads"):
            value = getattr(self, name)
            if value is not None:
                set_field(self, name, self._whole(name, value))
        for name in self._arrays:
            set_field(self, name, self._vector(name, getattr(self, name)))
        if self.when not in ("all", "prompt"):
            raise self._error(f"when={self.when!r} is not 'all' or 'prompt'.")
        if self.positions is not None:
            if any(p >= 0 for p in self.positions):
                raise self._error(
                    "positions count from the end of the prompt, so they are negative (-1 is the last "
                    f"prompt token); got {list(self.positions)}."
                )
            set_field(self, "when", "prompt")
        for site in self._chosen_sites():
            if site not in BLOCK_SITES:
                raise self._error(f"no site {site!r}; sites are {', '.join(BLOCK_SITES)}.")

    def _error(self, text: str) -> InterventionError:
        """What is wrong, with the name of the class before it."""
        return InterventionError(f"{type(self).__name__}: {text}")

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
                    self._operation,
                    self._edit_args(arch, layer, site),
                    self.positions,
                    self.heads,
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

    def _edit_args(self, arch: Architecture, layer: int, site: str) -> dict[str, np.ndarray]:
        """Arrays of the walk's operation."""
        return {name: getattr(self, name) for name in self._arrays}

    def _edit_plain(self) -> dict[str, Any]:
        """What the walk's operation takes as it is."""
        return {}

    def _chosen_sites(self) -> Sequence[str]:
        return (self.site,)  # type: ignore[attr-defined]

    def _chosen_layers(self, arch: Architecture) -> Sequence[int]:
        if self.layers is None:
            return range(arch.n_layers)
        self._check_range("layer", self.layers, arch.n_layers, "the blocks of this model")
        return self.layers

    def _check_range(self, what: str, given: Sequence[int], n: int, those: str) -> None:
        for number in given:
            if not 0 <= number < n:
                raise self._error(f"{what} {number} is not in 0..{n - 1}, {those}.")

    def _check(self, arch: Architecture, layer: int, site: str) -> None:
        place = arch.place(site)
        if self.heads is not None:
            if not place.heads:
                raise self._error(
                    f"site {site!r} has no heads; use one of {', '.join(HEAD_SITES)} or leave heads "
                    "out."
                )
            self._check_range("head", self.heads, place.heads, f"the heads at {site!r}")
        width = arch.d_head if place.heads else arch.d_model
        for name in self._arrays:
            got = getattr(self, name).shape[-1]
            if got != width:
                raise self._error(
                    f"{name} has {got} components, but {site!r} of this model has {width}."
                )

    def _whole(self, name: str, values: Any) -> tuple[int, ...]:
        """Whole numbers, each named once, from one or several."""
        try:
            given = [values] if np.ndim(values) == 0 else list(values)
            out = tuple(int(v) for v in given)
            if any(v != o for v, o in zip(given, out, strict=True)):
                raise ValueError("not whole")
        except (TypeError, ValueError, OverflowError) as error:
            raise self._error(f"{name} must be whole numbers, got {values!r}.") from error
        if not out:
            raise self._error(f"{name} is empty; leave it out to mean all of them.")
        if len(set(out)) < len(out):
            twice = next(v for v, n in Counter(out).items() if n > 1)
            raise self._error(f"{name} names {twice} twice; name each once.")
        return out

    def _vector(self, name: str, value: Any) -> np.ndarray:
        """A finite array of float64 that nobody can change."""
        if value is None:
            raise self._error(f"{name} is required.")
        if hasattr(value, "detach"):  # a torch tensor, on any device and in any dtype
            value = value.detach().cpu().double().numpy()
        array = np.array(value, dtype=np.float64)
        if array.ndim == 0 or array.size == 0:
            raise self._error(f"{name} must be a vector, got shape {array.shape}.")
        if not np.isfinite(array).all():
            raise self._error(f"{name} contains NaN or infinity.")
        array.setflags(write=False)
        return array


def set_field(obj: object, name: str, value: object) -> None:
    """Set a field while the object is made."""
    object.__setattr__(obj, name, value)  # the dataclass is frozen; this is construction
