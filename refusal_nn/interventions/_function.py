"""A function of the user's own as an intervention."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FunctionType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from refusal_nn.errors import InterventionError
from refusal_nn.interventions._intervention import Intervention, set_field
from refusal_nn.interventions._source import qualified, source_hash, source_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@dataclass(frozen=True, eq=False)
class FunctionIntervention(Intervention):
    """A function of your own: ``x`` becomes ``function(x, **args)``.

    It is called once a layer, forward pass and batch on a copy of the activation, ``[row, token,
    d_model]``, or ``[row, token, head, d_head]`` at a site with heads; where positions are named the
    token axis holds just these, in the order given, and where heads are named the head axis does. At
    later steps of a generation there is one token. Rows are the prompts of a batch and may begin with
    padding, so a function should treat rows and tokens alike, or be given positions. It returns a
    tensor of the same shape.

    It travels to a server by its source, together with what it refers to: torch and numpy are there,
    functions of the same script travel too, those of an installed package only after
    ``nnsight.register("package")``. Before a job is submitted it is read in a process without this
    package. What it prints stays on the server.

    Parameters
    ----------
    function : callable
        Defined with ``def`` at the top level of a file or notebook cell.
    args : mapping
        What it is called with, by keyword: tensors, arrays, numbers, strings, booleans, None, and
        lists, tuples or dictionaries of them. They arrive on the activation's device, floating-point
        tensors in its dtype.
    site : str
        Default ``resid_pre``: the input of the block.

    Raises
    ------
    InterventionError
        If it is no such function, its source cannot be read, it does not take the arguments, or an
        argument is something else.

    Notes
    -----
    A run records the function's qualified name, a SHA-256 of its source and that of the functions of
    the same package it calls, and of the arguments the shapes and hashes of tensors; nothing of it can
    be rebuilt from JSON.

    Examples
    --------
    ::

        def clip(x, bound):
            return x.clamp(-bound, bound)

        edit = rn.FunctionIntervention(clip, layers=[5], site="mlp_out", args={"bound": 3.0})
        rn.evaluate(model, prompts, {"clipped": [edit]})
    """

    function: Callable[..., torch.Tensor]
    args: Mapping[str, Any] = field(default_factory=dict)
    site: str = "resid_pre"
    kind: ClassVar[str] = "function"
    _operation: ClassVar[str] = "call"

    def __post_init__(self) -> None:
        super().__post_init__()
        function = self.function
        if not isinstance(function, FunctionType):
            raise self._error(
                f"a function is needed, got a {type(function).__name__}; wrap it "
                "in a function defined with def at the top level of your file."
            )
        name = qualified(function)
        if "<" in function.__qualname__ or "." in function.__qualname__ or function.__closure__:
            raise self._error(
                f"{name} is a lambda, a method or defined inside another "
                "function, so that its name does not tell what it does; define it with def at the top "
                "level of your file and pass what it needs in args."
            )
        source_of(function)
        if not isinstance(self.args, Mapping):
            raise self._error(
                f"args is a {type(self.args).__name__}; give the arguments of "
                f"{name} by name, such as {{'bound': 3.0}}."
            )
        try:
            inspect.signature(function).bind(None, **self.args)
        except TypeError as error:
            raise self._error(
                f"{name} cannot be called with an activation and the arguments "
                f"{', '.join(self.args) or '(none)'}: {error}."
            ) from error
        set_field(self, "args", {str(k): _own(v, f"argument {k!r}") for k, v in self.args.items()})

    def encode(self) -> dict[str, Any]:
        """Names and hashes; the fields that are data."""
        return {
            **super().encode(),
            "function": qualified(self.function),
            "source_sha256": source_hash(cast(FunctionType, self.function)),
            "args": _described(self.args),
        }

    def _edit_plain(self) -> dict[str, Any]:
        return {"function": self.function, "args": self.args, "name": qualified(self.function)}


def _own(value: Any, name: str) -> Any:
    """A copy of an argument that nobody else can change, arrays as tensors."""
    if isinstance(value, np.ndarray | np.generic) or hasattr(value, "detach"):
        import torch

        try:
            return torch.as_tensor(value).detach().cpu().clone()
        except TypeError as error:
            raise InterventionError(f"FunctionIntervention: {name}: {error}.") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise InterventionError(f"FunctionIntervention: {name} is {value}; give a finite number.")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (list, tuple):
        return type(value)(_own(v, name) for v in value)
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: _own(v, name) for k, v in value.items()}
    raise InterventionError(
        f"FunctionIntervention: {name} holds a {type(value).__name__}; give tensors, arrays, numbers, "
        "strings, booleans, None, and lists or dictionaries of them."
    )


def _described(value: Any) -> Any:
    """An argument as JSON: of a tensor its shape, dtype and a hash of its bytes."""
    if hasattr(value, "detach"):
        import torch

        data = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return {
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    if isinstance(value, list | tuple):
        return [_described(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _described(v) for k, v in value.items()}
    return value
