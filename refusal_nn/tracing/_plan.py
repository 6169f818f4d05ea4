"""Client side of the walk: interventions and captures compiled to a plan for one batch.

A plan is what ships: plain dicts, strings, ints and tensors. It is made anew for each batch,
because positions counted from the end of the prompt become token indices only once the padding is
known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from refusal_nn.errors import InterventionError
from refusal_nn.models.sites import MODEL_SITES

if TYPE_CHECKING:
    from refusal_nn.interventions import Edit, Intervention
    from refusal_nn.models import Architecture, Place
    from refusal_nn.shipped.plans import Plan, View, Visit
    from refusal_nn.tracing._batch import Batch


@dataclass(frozen=True)
class Capture:
    """What to take out of a forward pass.

    Parameters
    ----------
    name : str
        Key of the result.
    site : str
        Any site, ``embed``, ``final_norm`` or ``logits`` included.
    layers : sequence of int or int, optional
        Blocks; a sequence gives a result stacked over layers (layer first), one int does not.
        Ignored outside the blocks.
    positions : sequence of int, optional
        Token positions from the end of the prompt (negative); every token when None.
    reduce : str, optional
        Done where the activation is: ``sum`` (``weights`` ``[group, row]``), ``project``
        (``directions`` ``[k, d]``), and on logits ``refusal_score`` (``tokens``), ``log_probs``,
        ``smoothed_kl`` (``baseline``), ``smoothed_kl_slack``, ``token_log_probs`` (``tokens``).
    args : dict
        Arguments of the reduction.
    keep : bool
        Hold the result where it was made, for a later request of the same job, instead of
        returning it; a :class:`Ref` names it there.
    live : bool
        Keep the tensor whole and in the graph, for what comes ``after`` the pass: the module's
        tensor, heads not unfolded. At a module's input it is a branch of its own, so that a gradient
        there is that of what this module does. Not with ``reduce`` or ``positions``, except the last
        position of the logits.
    """

    name: str
    site: str
    layers: Sequence[int] | int | None = None
    positions: Sequence[int] | None = None
    reduce: str | None = None
    args: dict[str, Any] = field(default_factory=dict)
    keep: bool = False
    live: bool = False

    def __post_init__(self) -> None:
        whole = self.positions is None or (self.site, tuple(self.positions)) == ("logits", (-1,))
        if self.live and (not whole or self.reduce is not None or self.keep):
            raise InterventionError(
                f"capture {self.name!r} is live: it is the whole tensor, neither reduced nor kept."
            )


@dataclass(frozen=True)
class Ref:
    """A result that an earlier request of the same job held (``Capture(keep=True)``).

    It may stand for any tensor of an edit, a capture or :class:`Start`, and never leaves the machine
    that computed it.

    Parameters
    ----------
    request : int
        Which request of the batch's own list, or of the job's shared ones.
    name : str
        Name of the capture.
    shared : bool
    layer : int, optional
        Index along the first axis (of a capture stacked over layers).
    rows : sequence of int, optional
        Indices along the row axis that is then first; a row may be named several times.
    """

    request: int
    name: str
    shared: bool = False
    layer: int | None = None
    rows: Sequence[int] | None = None

    def plain(self) -> tuple[Any, ...]:
        """The form that ships."""
        return ("ref", self.shared, self.request, self.name, self.layer, listed(self.rows))


@dataclass(frozen=True)
class Start:
    """Begin at block ``layer`` from a given residual stream; earlier blocks are skipped.

    ``residual`` is ``[row, token, d_model]``, the input of that block.
    """

    layer: int
    residual: torch.Tensor | Ref


def build_plan(
    arch: Architecture,
    interventions: Iterable[Intervention | Edit] = (),
    captures: Sequence[Capture] = (),
    *,
    batch: Batch,
    dtype: torch.dtype = torch.float32,
    start: Start | None = None,
    last_logits_only: bool = False,
    gradient: bool = False,
    after: tuple[str, Mapping[str, Any]] | None = None,
) -> Plan:
    """Compile to a plan for one batch.

    Parameters
    ----------
    arch : Architecture
    interventions, captures
        What to change and what to take.
    batch : Batch
        The rows, see :func:`pad`; of them only how they are padded matters.
    dtype : torch.dtype
        The model's; vectors ship in float64 for a float64 model, in float32 otherwise.
    start : Start, optional
    last_logits_only : bool
        The model returns logits of the last token alone, so captures of position -1 read index 0.
    gradient : bool
        Keep the graph of the pass; it begins at the embedding's output.
    after : (str, mapping), optional
        A shipped function that makes results of the captures, and its arguments.

    Raises
    ------
    InterventionError
        If something does not fit the model or the batch; nothing has run then.
    """
    binding = _Binding(batch, dtype)
    visits = _Visits(arch)
    if start is not None:
        visits.start(start)
    for intervention in interventions:
        for edit in intervention.edits(arch) if hasattr(intervention, "edits") else [intervention]:
            visits.edit_view(edit)["ops"].append((edit.operation, binding.edit_args(edit)))

    if gradient and start is None:
        visits.view(None, "embed")["ops"].append(("leaf", dict(EVERYWHERE)))
    if last_logits_only:
        visits.one_product_at_the_head()
    logits: list[View] = []
    stacked: dict[str, list[int]] = {}
    names = [capture.name for capture in captures]
    if len(set(names)) != len(names):
        raise InterventionError(f"two captures have one name; names are {', '.join(names)}.")
    for capture in captures:
        args = binding.capture_args(capture, last_logits_only)
        if capture.site == "logits":
            logits.append(_view("logits", None))
            logits[-1]["captures"].append((capture.name, args))
            continue
        layers: Sequence[int | None]
        if capture.site in MODEL_SITES:
            layers = [None]
        elif isinstance(capture.layers, int):
            layers = [capture.layers]
        else:
            layers = chosen = range(arch.n_layers) if capture.layers is None else capture.layers
            # taken in order of layer, stacked in the order asked for
            stacked[capture.name] = np.argsort(np.argsort(chosen, kind="stable")).tolist()
        for layer in layers:
            if layer is not None and not 0 <= layer < arch.n_layers:
                raise InterventionError(
                    f"capture {capture.name!r}: layer {layer} is not in 0..{arch.n_layers - 1}."
                )
            view = visits.whole if capture.live else visits.view
            view(layer, capture.site)["captures"].append((capture.name, args))
    return {
        "visits": visits.in_order(),
        "logits": logits,
        "stacked": stacked,
        "live": [c.name for c in captures if c.live],
        "held": [
            *(c.name for c in captures if c.keep),
            *(after[1].get("keep", ()) if after else ()),
        ],
        "gradient": gradient,
        "after": None if after is None else (after[0], shippable(after[1])),
    }


EVERYWHERE = {"index": None, "heads": None, "when": "prompt"}


def shippable(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in the form that ships: references plain, arrays as tensors."""

    def form(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.tensor(value)
        return value.plain() if isinstance(value, Ref) else value

    return {k: form(v) for k, v in args.items()}


def listed(numbers: Sequence[int] | None) -> list[int] | None:
    """Whole numbers in the form that ships."""
    return None if numbers is None else [int(n) for n in numbers]


def _view(site: str, place: Place | None) -> View:
    return {
        "site": site,
        "view": place.view if place else None,
        "heads": place.heads if place else 0,
        "ops": [],
        "captures": [],
        "keep": None,
    }


class _Visits:
    """The visits of a plan, keyed by their place in the forward pass."""

    def __init__(self, arch: Architecture) -> None:
        self.arch = arch
        self.order = {site: i for i, site in enumerate(arch.places)}
        self.by_place: dict[tuple[float, str, str], Visit] = {}
        self.first_layer = 0

    def visit(self, rank: float, path: str, io: str) -> Visit:
        new: Visit = {"path": path, "io": io, "views": [], "decode": False}
        return self.by_place.setdefault((rank, path, io), new)

    def view(self, layer: int | None, site: str, *, through: str | None = None) -> View:
        """The view of a site, made on first use.

        ``through`` names the site whose module the view goes through, where that is not its own.
        """
        visit = self.visit_of(layer, through or site)
        for view in visit["views"]:
            if view["site"] == site and "whole" not in view:
                return view
        place = None if layer is None else self.arch.place(through or site)
        visit["views"].append(_view(site, place))
        return visit["views"][-1]

    def visit_of(self, layer: int | None, site: str) -> Visit:
        """The visit to the module of a site."""
        if layer is None:
            rank = -1.0 if site == "embed" else float(self.arch.n_layers)
            path = self.arch.embed if site == "embed" else self.arch.final_norm
            return self.visit(rank, path, "output")
        if layer < self.first_layer:
            raise InterventionError(
                f"{site} of layer {layer} is before layer {self.first_layer}, where this pass "
                "starts."
            )
        place = self.arch.place(site)
        path = f"{self.arch.block(layer)}.{place.path}".rstrip(".")
        return self.visit(layer + self._rank(site), path, place.io)

    def whole(self, layer: int | None, site: str) -> View:
        """A view of all that the module of a site has there, behind the views of its parts."""
        visit = self.visit_of(layer, site)
        visit["views"].append({**_view(site, None), "whole": True})
        if visit["io"] == "input":
            visit["views"][-1]["ops"].append(("branch", dict(EVERYWHERE)))
        return visit["views"][-1]

    def edit_view(self, edit: Edit) -> View:
        """The view an edit is applied at."""
        if edit.site != "resid_mid":
            return self.view(edit.layer, edit.site)
        # The block keeps the residual stream from before its pre-MLP norm, so writing the norm's
        # input would change the MLP alone; changing what attention wrote changes both.
        self.view(edit.layer, "resid_pre")["keep"] = "resid_pre"
        view = self.view(edit.layer, "resid_mid", through="attn_out")
        view["view"] = ("residual",)
        return view

    def start(self, start: Start) -> None:
        """Skip the blocks before ``start.layer`` and put its residual at that block's input."""
        if not 0 <= start.layer < self.arch.n_layers:
            raise InterventionError(
                f"cannot start at layer {start.layer}: blocks are 0..{self.arch.n_layers - 1}."
            )
        for layer in range(start.layer):
            self.visit(float(layer), self.arch.block(layer), "skip")
        self.first_layer = start.layer
        replace = shippable({"value": start.residual})
        self.view(start.layer, "resid_pre")["ops"].append(("set", {**replace, **EVERYWHERE}))

    def one_product_at_the_head(self) -> None:
        """Copy the strided slice that enters the head when only the last token is kept.

        PyTorch multiplies it by the head's weight row by row otherwise, which costs as much as the
        logits of every token (measured on CPU with 32 rows of 15 tokens and 50,257 words).
        """
        visit = self.visit(self.arch.n_layers + 0.5, self.arch.head, "input")
        visit["views"].append(_view("logits", None))
        visit["views"][-1]["ops"].append(("contiguous", dict(EVERYWHERE)))

    def in_order(self) -> list[Visit]:
        """Visits in execution order, each marked if it has work at decode steps."""
        out = [self.by_place[key] for key in sorted(self.by_place)]
        for visit in out:
            visit["views"].sort(key=lambda v: ("whole" in v, self.order.get(v["site"], 0)))
            visit["decode"] = any(
                view["keep"] or any(args["when"] == "all" for _, args in view["ops"])
                for view in visit["views"]
            )
        return out

    def _rank(self, site: str) -> float:
        # q, k and v that are slices of one output are visited together
        if site in ("q", "k", "v"):
            path = self.arch.places[site].path
            site = next(s for s in ("q", "k", "v") if self.arch.places[s].path == path)
        return self.order[site] / (len(self.order) + 1)


class _Binding:
    """What turns positions and vectors into tensors for one batch."""

    def __init__(self, batch: Batch, dtype: torch.dtype) -> None:
        self.batch = batch
        self.dtype = torch.float64 if dtype == torch.float64 else torch.float32
        self.tensors: dict[tuple[tuple[int, ...], bytes], torch.Tensor] = {}

    def index(self, positions: Sequence[int] | None) -> torch.Tensor | None:
        """Token indices ``[row, p]`` of positions counted from the end of each prompt."""
        if positions is None:
            return None
        shortest = min(self.batch.lengths)
        for p in positions:
            if p >= 0 or -p > shortest:
                raise InterventionError(
                    f"position {p} is not inside every prompt: positions are negative, from the end, "
                    f"and the shortest prompt has {shortest} tokens."
                )
        left = self.batch.padding_side == "left"
        ends = [self.batch.width if left else n for n in self.batch.lengths]
        return torch.tensor([[end + p for p in positions] for end in ends])

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """The array as a tensor: one tensor for equal arrays, so that a plan ships each once."""
        key = (array.shape, array.tobytes())
        if key not in self.tensors:
            self.tensors[key] = torch.tensor(array, dtype=self.dtype)
        return self.tensors[key]

    def edit_args(self, edit: Edit) -> dict[str, Any]:
        rows = listed(edit.rows)
        wanted = len(self.batch.lengths if rows is None else rows)
        args: dict[str, Any] = {}
        for name, value in edit.args.items():
            args[name] = value.plain() if isinstance(value, Ref) else self.tensor(value)
            if isinstance(value, Ref) or edit.pick is not None:
                continue
            if value.ndim > 1 and len(value) not in (1, wanted):
                raise InterventionError(
                    f"{name} has {len(value)} rows for a batch of {wanted}; give one vector, or one a "
                    "row."
                )
        index = self.index(edit.positions)
        if index is not None and rows is not None:
            index = index[rows]
        return {
            **args,
            **shippable(edit.plain),
            "index": index,
            "heads": listed(edit.heads),
            "when": edit.when,
            "rows": rows,
            "pick": listed(edit.pick),
        }

    def capture_args(self, capture: Capture, last_logits_only: bool) -> dict[str, Any]:
        args = {"reduce": "live" if capture.live else capture.reduce, **shippable(capture.args)}
        if capture.site == "logits" and last_logits_only:
            if tuple(capture.positions or ()) != (-1,):
                raise InterventionError(
                    f"capture {capture.name!r} needs logits at every position, but this pass keeps "
                    "only the last."
                )
            args["index"] = None
        else:
            args["index"] = self.index(capture.positions)
        return args
