"""Circuits for programs that draw or analyse graphs: GraphML and Graphviz DOT.

Nodes are the components of :mod:`refusal_nn.circuits._parts`; an edge keeps its full name, the
input it leads into and its score. Both are text made here, so neither needs a library.
"""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from refusal_nn.circuits._parts import Arrow, Component, parts
from refusal_nn.models._graph import dense

if TYPE_CHECKING:
    from refusal_nn.circuits._circuit import Circuit

COLOURS = {"q": "#0072B2", "k": "#D55E00", "v": "#009E73", "mlp": "#AA4499", "logits": "#59636e"}
"""Colour of an edge by what it leads into, as in the drawing."""

TIE = "shares"
"""``reader`` of the tie from a key-value head to a query head that shares it: no edge of the graph."""

THICKEST, THINNEST = 5.0, 0.6

_NODE_KEYS = (("kind", "string"), ("layer", "int"), ("head", "int"))
_EDGE_KEYS = (("edge", "string"), ("reader", "string"), ("score", "double"))


def graphml(circuit: Circuit) -> str:
    """The circuit as GraphML.

    Parameters
    ----------
    circuit : Circuit

    Returns
    -------
    str
        A directed multigraph. Nodes have ``kind``, ``layer`` and ``head``; edges have ``edge`` (the
        name, also their id), ``reader`` (q, k, v, mlp, logits, or shares for ties) and ``score``
        where there is one. Sizes of the graph and what made the circuit are data of the graph.

    References
    ----------
    Brandes et al. 2002, GraphML 1.0.
    """
    taken = parts(
        dense(circuit.graph), circuit.kept, circuit.scores, metric=str(circuit.attrs.get("metric"))
    )
    root = ET.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
    facts = _facts(circuit)
    for scope, keys in (
        ("graph", [(k, "string") for k in facts]),
        ("node", _NODE_KEYS),
        ("edge", _EDGE_KEYS),
    ):
        for name, kind in keys:
            ET.SubElement(
                root, "key", {"id": f"{scope}_{name}", "for": scope, "attr.name": name, "attr.type": kind}
            )  # fmt: skip
    graph = ET.SubElement(root, "graph", id="circuit", edgedefault="directed")
    for name, value in facts.items():
        _data(graph, f"graph_{name}", value)
    for component in taken.components:
        node = ET.SubElement(graph, "node", id=component.name)
        for name, _ in _NODE_KEYS:
            if (value := getattr(component, name)) is not None:
                _data(node, f"node_{name}", str(value))
    ties = [Arrow(f"{kv}--{head}", kv, head, TIE, math.nan) for kv, head in taken.ties]
    for arrow in (*taken.arrows, *ties):
        edge = ET.SubElement(graph, "edge", id=arrow.edge, source=arrow.src, target=arrow.dst)
        _data(edge, "edge_edge", arrow.edge)
        _data(edge, "edge_reader", arrow.reader)
        if math.isfinite(arrow.score):
            _data(edge, "edge_score", repr(arrow.score))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def dot(circuit: Circuit) -> str:
    """The circuit as Graphviz DOT text, input below and logits above.

    Parameters
    ----------
    circuit : Circuit

    Returns
    -------
    str
        Colour by what an edge leads into, pen width by ``|score|``, dashed where the edge works
        against the metric, dotted for ties of key-value heads.
    """
    taken = parts(
        dense(circuit.graph), circuit.kept, circuit.scores, metric=str(circuit.attrs.get("metric"))
    )
    largest = max((abs(a.score) for a in taken.arrows if math.isfinite(a.score)), default=0.0)
    lines = [
        "digraph circuit {",
        "  rankdir=BT;",
        '  node [fontname="Helvetica", fontsize=10, height=0.25];',
        "  edge [arrowsize=0.5];",
    ]
    lines += [f"  // {name}: {' '.join(value.split())}" for name, value in _facts(circuit).items()]
    for _, rank in groupby(taken.components, key=lambda c: (c.layer, c.kind)):
        names = " ".join(f"{_quoted(c.name)} [shape={_shape(c)}];" for c in rank)
        lines.append(f"  {{ rank=same; {names} }}")
    for arrow in taken.arrows:
        known = math.isfinite(arrow.score)
        width = max(THINNEST, THICKEST * abs(arrow.score) / largest) if known and largest else 1.0
        options = {
            "label": _quoted(arrow.reader) if arrow.reader in "qkv" else None,
            "color": _quoted(COLOURS[arrow.reader]),
            "penwidth": f"{width:.3g}",
            "style": "dashed" if arrow.against else None,
            "tooltip": _quoted(f"{arrow.edge} {arrow.score!r}" if known else arrow.edge),
        }
        listed = ", ".join(f"{k}={v}" for k, v in options.items() if v is not None)
        lines.append(f"  {_quoted(arrow.src)} -> {_quoted(arrow.dst)} [{listed}];")
    lines += [
        f"  {_quoted(kv)} -> {_quoted(head)} [style=dotted, arrowhead=none, tooltip={_quoted(TIE)}];"
        for kv, head in taken.ties
    ]
    return "\n".join([*lines, "}", ""])


def _facts(circuit: Circuit) -> dict[str, str]:
    """Sizes of the graph, then what made the circuit, as text."""
    plain = {**circuit.graph.to_attrs(), **dict(circuit.attrs)}
    return {
        str(k): _clean(str(v)) for k, v in plain.items() if isinstance(v, str | int | float | bool)
    }


def _clean(text: str) -> str:
    """Without the control characters that XML forbids."""
    return "".join(
        c if c.isprintable() or c in "\t\n" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _data(parent: ET.Element, key: str, value: str) -> None:
    ET.SubElement(parent, "data", key=key).text = value


def _shape(component: Component) -> str:
    return {"head": "ellipse", "kv": "ellipse", "mlp": "box"}.get(component.kind, "plaintext")


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
