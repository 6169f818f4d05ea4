"""The registry of stored variables: each is declared once, and every write is checked against it.

A :class:`Spec` says which dims a variable has, what its numbers mean and where the definition comes
from. :func:`annotate` copies that into the attrs of a Dataset and refuses what was never declared.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from refusal_nn._analyses import declare_variables
from refusal_nn._files import check_plain
from refusal_nn.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    import xarray as xr

KINDS = ("float", "int", "bool", "string")

_KIND_OF = {"f": "float", "i": "int", "u": "int", "b": "bool", **dict.fromkeys("OUT", "string")}
"""Of numpy's kinds of dtype."""

# Any variable may also lie along these: runs are concatenated, estimates are resampled.
FREE_DIMS = ("run", "resample")

_ENDS = {
    "_low": ("Lower end of the interval of", None),
    "_high": ("Upper end of the interval of", None),
    "_n": ("Number of observations behind", "int"),
}


@dataclass(frozen=True)
class Spec:
    """Declaration of one stored variable or coordinate.

    Parameters
    ----------
    name : str
        Name in the Dataset.
    dims : tuple of str
        All dims it can have, in the order it must have them. Empty for a coordinate, which may
        label any one dim or be a scalar.
    dtype : {"float", "int", "bool", "string"}
        Kind of value; the width is the writer's choice.
    unit : str
        Unit or range; ``""`` for a label.
    summary : str
        One sentence: what it is, and what a larger value means.
    source : str
        Paper, section or module that defines it; ``""`` when the summary is the definition.
    optional : tuple of str
        Those of `dims` that may be absent.
    coord : bool
        Whether it is a coordinate.
    prompt_labels : tuple of str, optional
        Labels that dim ``prompt`` needs for this variable; default all of :data:`LABELS`. A text of a
        corpus has a ``prompt_id`` and asks for nothing, harmful or harmless.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    unit: str
    summary: str
    source: str = ""
    optional: tuple[str, ...] = ()
    coord: bool = False
    prompt_labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in KINDS:
            raise StoreError(
                f"variable {self.name!r} is declared with dtype {self.dtype!r}; "
                f"allowed are {', '.join(KINDS)}."
            )
        if not self.summary:
            raise StoreError(f"variable {self.name!r} is declared without a summary; write one.")
        unknown = set(self.optional) - set(self.dims)
        if unknown:
            raise StoreError(
                f"variable {self.name!r} declares optional dims {sorted(unknown)} that are not "
                f"among its dims {self.dims}."
            )

    def accepts(self, dims: Iterable[Hashable]) -> bool:
        """Whether `dims` are this variable's: the required ones present, all in declared order."""
        own = [d for d in dims if d not in FREE_DIMS or d in self.dims]
        order = [self.dims.index(str(d)) for d in own if d in self.dims]
        required = set(self.dims) - set(self.optional)
        return len(order) == len(own) and order == sorted(set(order)) and required <= set(own)

    def describe_dims(self) -> str:
        """Dims as text, the optional ones in brackets."""
        return ", ".join(f"[{d}]" if d in self.optional else d for d in self.dims) or "(scalar)"


def specs(dtype: str, unit: str, source: str, dims: str, /, **summaries: str) -> list[Spec]:
    """Declarations of variables that differ in name and summary alone.

    Parameters
    ----------
    dtype, unit, source
        As of :class:`Spec`.
    dims : str
        With commas, those that may be absent in brackets, as :meth:`Spec.describe_dims` says them;
        empty for a scalar.
    **summaries : str
        By name.

    Examples
    --------
    >>> from refusal_nn.store.variables import specs
    >>> (spec,) = specs("float", "nats", "", "prompt, [layer]", lens_kl="KL of the lens.")
    >>> spec.dims, spec.optional
    (('prompt', 'layer'), ('layer',))
    """
    written = dims.split(", ") if dims else []
    every = tuple(d.strip("[]") for d in written)
    absent = tuple(d.strip("[]") for d in written if d.startswith("["))
    return [Spec(n, every, dtype, unit, text, source, absent) for n, text in summaries.items()]


def coords(dtype: str, unit: str, /, **summaries: str) -> list[Spec]:
    """Declarations of coordinates that differ in name and summary alone; see :func:`specs`."""
    return [Spec(name, (), dtype, unit, text, coord=True) for name, text in summaries.items()]


REGISTRY: dict[str, Spec] = {}
"""The variables and coordinates declared so far, by name: those of an analysis with its package.

:func:`lookup` asks the packages of all analyses; here is only what those imported until now declare.
"""

_DECLARED_BY: dict[str, str] = {}
"""The module that declared each, for the message where another one declares it differently."""

LABELS: dict[str, tuple[str, ...]] = {
    "prompt": ("prompt_id", "category", "harm", "style", "split", "source"),
    # prompts of an earlier step: their texts and families are variables
    "used_prompt": (),
    "candidate": ("position", "layer"),
    "d_model": (),
    "d_head": (),
    "token": (),
    "topk": (),
}
"""Coordinates that a dim must carry; a dim not named here carries one of its own name."""


def register(*specs: Spec) -> None:
    """Declare variables, when the package of the analysis that stores them is imported.

    Parameters
    ----------
    *specs : Spec
        Declaring the same Spec twice is harmless.

    Raises
    ------
    StoreError
        If a name was declared differently so far. Of two packages that disagree the one that is
        imported last is told, with the names of both.

    Examples
    --------
    >>> from refusal_nn.store import Spec, register
    >>> register(Spec("lens_entropy", ("prompt", "layer"), "float", "nats", "Entropy of the lens."))
    """
    module = str(sys._getframe(1).f_globals.get("__name__", "a script"))
    for spec in specs:
        known = REGISTRY.get(spec.name)
        if known is not None and known != spec:
            raise StoreError(
                f"variable {spec.name!r} is already declared by {_DECLARED_BY[spec.name]} as {known}, "
                f"and {module} declares it as {spec}; use one declaration, or another name."
            )
        REGISTRY[spec.name] = spec
        _DECLARED_BY.setdefault(spec.name, module)


def lookup(name: str) -> Spec | None:
    """Declaration of `name`; ``*_low``, ``*_high`` and ``*_n`` follow from the variable they bound.

    Of a name that nothing imported so far declares, the packages of all analyses are asked.

    Examples
    --------
    >>> from refusal_nn.store.variables import lookup
    >>> lookup("refusal_rate_low").unit
    '0 to 1'
    """
    for _ in chain([None], declare_variables()):
        if (found := _lookup(name)) is not None:
            return found
    return None


def _lookup(name: str) -> Spec | None:
    if name in REGISTRY:
        return REGISTRY[name]
    for end, (phrase, kind) in _ENDS.items():
        base = REGISTRY.get(name.removesuffix(end)) if name.endswith(end) else None
        if base is not None and not base.coord:
            bound = replace(base, name=name, summary=f"{phrase} {base.name}.", prompt_labels=None)
            return replace(bound, dtype=kind, unit="count") if kind else bound
    return None


def annotate(ds: xr.Dataset) -> xr.Dataset:
    """A copy of `ds` whose variables carry their declared attrs, checked against the registry.

    Parameters
    ----------
    ds : xarray.Dataset
        Any mix of declared variables. Attrs that the declaration does not set are kept.

    Returns
    -------
    xarray.Dataset
        Every variable with ``long_name``, ``comment`` and, where declared, ``units``, ``source``.

    Raises
    ------
    StoreError
        If a variable is unknown, has other dims or another kind of value than declared, or lies
        along a dim without the labels of :data:`LABELS`.
    """
    out = ds.copy(deep=False)
    for name in [*ds.data_vars, *ds.coords]:
        variable = ds[name].variable
        spec = _declared(str(name), is_coord=name in ds.coords)
        kind = _kind(str(name), variable.dtype, variable)
        if kind != spec.dtype:
            raise StoreError(
                f"variable {name!r} holds {variable.dtype} but is declared as {spec.dtype}; "
                "convert it before storing."
            )
        if name in ds.data_vars:
            if not spec.accepts(variable.dims):
                raise StoreError(
                    f"variable {name!r} has dims {_listed(variable.dims)} but is declared with "
                    f"{spec.describe_dims()}; rename or transpose them."
                )
        elif len(variable.dims) > 1:
            raise StoreError(
                f"coordinate {name!r} has dims {_listed(variable.dims)}; a label has at most one."
            )
        declared = {"long_name": spec.summary.split(". ")[0].rstrip("."), "comment": spec.summary}
        declared |= {k: v for k, v in (("units", spec.unit), ("source", spec.source)) if v}
        # xarray shares attrs between shallow copies, so a new dict is assigned
        out[name].attrs = {**ds[name].attrs, **declared}
    if "layer" in out.coords and "site" in ds.attrs:
        out["layer"].attrs = {**out["layer"].attrs, "site": str(ds.attrs["site"])}
    _require_labels(ds)
    return out


def _declared(name: str, *, is_coord: bool) -> Spec:
    spec = lookup(name)
    if spec is None:
        raise StoreError(
            f"variable {name!r} is not declared; add it with refusal_nn.store.register(Spec(...)) "
            "or drop it."
        )
    if is_coord and not spec.coord:
        raise StoreError(
            f"{name!r} is a coordinate here but is declared as a variable; "
            f"use Dataset.reset_coords({name!r})."
        )
    return spec


def _require_labels(ds: xr.Dataset) -> None:
    for dim in ds.dims:
        needed = _labels_of(ds, str(dim))
        missing = [c for c in needed if c not in ds.coords]
        # a coordinate that lies along another dim of the same Dataset does not label this one
        wrong = [c for c in needed if c in ds.coords and ds[c].dims not in ((dim,), ())]
        if missing or wrong:
            raise StoreError(
                f"dim {dim!r} lacks its label{'s' if len(missing + wrong) > 1 else ''} "
                f"{', '.join(missing + wrong)}; add coordinates over {dim!r} with "
                "Dataset.assign_coords before storing."
            )


def _labels_of(ds: xr.Dataset, dim: str) -> tuple[str, ...]:
    """The coordinates that a dim must carry here."""
    every = LABELS.get(dim, (dim,))
    if dim != "prompt":
        return every
    along = [_declared(str(n), is_coord=False) for n, v in ds.data_vars.items() if dim in v.dims]
    wanted = [every if spec.prompt_labels is None else spec.prompt_labels for spec in along]
    return tuple(c for c in every if any(c in labels for labels in wanted or [every]))


def _kind(name: str, dtype: np.dtype, variable: xr.Variable) -> str:
    """Kind of value, of :data:`KINDS`."""
    if dtype.kind not in _KIND_OF:
        raise StoreError(
            f"variable {name!r} has dtype {dtype}, which zarr cannot hold; "
            "convert it (bfloat16 becomes float32)."
        )
    # zarr would turn None into '' without a word
    values = np.ravel(variable.values) if dtype.kind in "OU" else ()
    for value in values:
        if not isinstance(value, str):
            raise StoreError(
                f"variable {name!r} holds {value!r} among its strings; "
                "store '' and a boolean mask instead."
            )
        if not value.isascii():
            check_plain(value, what=f"variable {name!r}", error=StoreError)
    return _KIND_OF[dtype.kind]


def _listed(dims: Iterable[Hashable]) -> str:
    return f"({', '.join(map(str, dims))})"
