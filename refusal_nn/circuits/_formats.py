"""Circuits as files: written for other programs, and read back from theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refusal_nn._files import kind_at, parse_json, quoted, read_bytes
from refusal_nn.circuits import _diagrams, _eap_ig, _neuronpedia
from refusal_nn.errors import RequestError
from refusal_nn.models._graph import EdgeGraph
from refusal_nn.store._disk import write_atomically, writing

if TYPE_CHECKING:
    from refusal_nn.circuits._circuit import Circuit
    from refusal_nn.models import Model

FORMATS = {
    "eap-ig-json": (".json",),
    "eap-ig-pt": (".pt",),
    "graphml": (".graphml",),
    "dot": (".dot", ".gv"),
    "neuronpedia": (),
}
"""Formats and the suffixes that mean them; Neuronpedia's also ends in ``.json``, so it is asked for."""

READABLE = ("eap-ig-json", "eap-ig-pt")


def export(
    circuit: Circuit,
    path: str | Path,
    format: str | None = None,  # noqa: A002 - the word of the command line
    *,
    d_model: int | None = None,
    model: Mapping[str, str] | None = None,
) -> Path:
    """Write a circuit for another program.

    Parameters
    ----------
    circuit : Circuit
    path : str or Path
        File to make; it must not exist.
    format : {"eap-ig-json", "eap-ig-pt", "graphml", "dot", "neuronpedia"}, optional
        Default by the ending of ``path``: ``.json``, ``.pt``, ``.graphml``, ``.dot``.
    d_model : int, optional
        Width of the residual stream, which the EAP-IG formats state. Default: attr ``d_model`` of
        the circuit.
    model : mapping, optional
        ``model`` (its name), ``weights_hash`` and ``tokenizer_hash``, so that :func:`read` can tell
        another model's file. Default: those attrs of the circuit.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RequestError
        If the format is unknown, the file exists or cannot be written, or the circuit lacks what
        the format needs.

    References
    ----------
    Hanna et al. 2024 (EAP-IG); Brandes et al. 2002 (GraphML); Neuronpedia's graph schema 1.0.0.
    """
    target = Path(path)
    kind = _format_of(target, format)
    known = {k: str(v) for k, v in (model if model is not None else circuit.attrs).items()}
    if kind_at(target.parent) != "folder":
        raise RequestError(
            f"there is no folder {quoted(target.parent)} to export to; make it first."
        )
    if os.path.lexists(target):  # a link that leads nowhere, too
        raise RequestError(f"{quoted(target)} exists; choose another file or delete it first.")
    if kind.startswith("eap-ig"):
        width = d_model if d_model is not None else circuit.attrs.get("d_model")
        if isinstance(width, bool) or not isinstance(width, int | None):
            raise RequestError(
                f"the width of the residual stream is {quoted(str(width))}, no whole number; pass d_model."
            )
        if width is None:
            raise RequestError(
                "the EAP-IG formats state the width of the residual stream, which this circuit does "
                "not know; pass d_model."
            )
        tensors = kind == "eap-ig-pt"
        tree = _eap_ig.to_tree(circuit, tensors=tensors, d_model=int(width), model=known)
        data = _as_pt(tree) if tensors else _as_json(tree, indent=None)
    elif kind == "neuronpedia":
        data = _as_json(_neuronpedia.to_tree(circuit, name=target.stem, model=known), indent=1)
    else:
        text = _diagrams.graphml(circuit) if kind == "graphml" else _diagrams.dot(circuit)
        data = text.encode()
    with writing(target):
        write_atomically(target, data)
    return target


def read(path: str | Path, of: EdgeGraph | Model, *, groups: str = "same") -> Circuit:
    """Read a circuit that EAP-IG, or :func:`export`, wrote as JSON or ``.pt``.

    Parameters
    ----------
    path : str or Path
        The file. A ``.pt`` is loaded as tensors and plain data only: nothing in it is run.
    of : EdgeGraph or Model
        What the circuit must be of. Sizes are compared, and with a model also its width and the
        hashes that :func:`export` wrote.
    groups : {"same", "any", "all"}
        With grouped-query attention, what becomes of a key or value edge that the file keeps for
        some of the heads that share it: an error, kept, or dropped.

    Returns
    -------
    Circuit
        Scores of heads that share a key-value head are added up, and turned to be the change of the
        metric when an edge is corrupted (negative: the edge supports the metric). Edges the file
        leaves out are not in the circuit and score 0. The file's own flags of nodes are not used:
        they follow from the edges.

    Raises
    ------
    RequestError
        If there is no such file, it is of no format that can be read, it holds anything but tensors
        and plain data, or its circuit is of another model or keeps single neurons.
    """
    if groups not in _eap_ig.GROUPS:
        raise RequestError(f"groups is {groups!r}; choose {', '.join(_eap_ig.GROUPS)}.")
    source = Path(path)
    belongs: dict[str, Any] = {"graph": of}
    if not isinstance(of, EdgeGraph):
        identity = {k: str(v) for k, v in of.identity().items()}
        belongs = {"graph": EdgeGraph.of(of.arch), "model": identity, "d_model": of.d_model}
    data = read_bytes(source, what="circuit file")
    kind = _format_of(source, None)
    if kind not in READABLE:
        raise RequestError(
            f"{source.name!r} is a drawing: {kind} is only written; give a .json or .pt file."
        )
    tensors = kind == "eap-ig-pt"
    tree = _load_pt(data, source) if tensors else _load_json(data, source)
    file = _eap_ig.CircuitFile(source.name, tree, **belongs)
    try:
        return file.circuit(tensors=tensors, groups=groups)
    except (
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise RequestError(
            f"circuit file {quoted(source.name)} is not as EAP-IG writes them ({reason}); export it again "
            "from there, or with `refusal-nn circuit export`."
        ) from error


def _format_of(path: Path, given: str | None) -> str:
    kind = given or next((k for k, ends in FORMATS.items() if path.suffix.lower() in ends), None)
    if kind not in FORMATS:
        ends = ", ".join(end for ends in FORMATS.values() for end in ends)
        raise RequestError(
            f"cannot tell the format of circuit file {quoted(path.name)}; end it in {ends}, or name one of "
            f"{', '.join(FORMATS)}."
        )
    return str(kind)


def _as_json(tree: Any, *, indent: int | None) -> bytes:
    # allow_nan: what cannot be written as JSON must fail here, not in another program
    try:
        text = json.dumps(tree, indent=indent, allow_nan=False, ensure_ascii=False)
        return f"{text}\n".encode()
    except ValueError as error:  # a score that is no number, half of a character
        raise RequestError(
            "the circuit holds what JSON cannot say (a number that is not finite, or half of a "
            "character); discover it again."
        ) from error


def _as_pt(tree: Any) -> bytes:
    import io

    import torch

    buffer = io.BytesIO()
    torch.save(tree, buffer)
    return buffer.getvalue()


def _load_json(data: bytes, source: Path) -> Any:
    tree = parse_json(data, what=f"circuit file {quoted(source.name)}")
    if isinstance(tree, dict) and "links" in tree and "qParams" in tree:
        raise RequestError(
            f"{source.name!r} is a Neuronpedia graph, which is only written; give the EAP-IG .json "
            "or .pt file of the circuit."
        )
    return tree


def _load_pt(data: bytes, source: Path) -> Any:
    import io
    import warnings

    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other pickle protocols: they load or they do not
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files end in errors of many types
        raise RequestError(
            f"circuit file {source.name!r} does not hold tensors and plain data only, so it was not "
            f"loaded ({' '.join(str(error).split())[:120]}); export it again from EAP-IG, or give its "
            ".json."
        ) from error
