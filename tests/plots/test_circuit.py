"""The drawing of a circuit holds its edges, runs upward and lets no edge touch a box it passes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch

from refusal_nn import plots
from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits import Circuit
from refusal_nn.errors import RequestError
from refusal_nn.plots._circuit import MAX_EDGES, READERS
from refusal_nn.testing import GRAPHS, random_circuit


@pytest.fixture(params=list(GRAPHS))
def circuit(request: pytest.FixtureRequest) -> Circuit:
    return random_circuit(GRAPHS[request.param])


def _edges(figure: Figure) -> list[PathPatch]:
    (ax,) = figure.axes
    return [p for p in ax.patches if isinstance(p, PathPatch)]


def _boxes(figure: Figure) -> dict[str, tuple[float, float, float, float]]:
    """Left, right, bottom and top of every named box."""
    (ax,) = figure.axes
    texts = {(t.get_position()): t.get_text() for t in ax.texts}
    out = {}
    for box in (p for p in ax.patches if isinstance(p, FancyBboxPatch)):
        left, right = box.get_x() - 0.03, box.get_x() + box.get_width() + 0.03
        bottom, top = box.get_y(), box.get_y() + box.get_height()
        middle = ((left + right) / 2, (bottom + top) / 2)
        (name,) = (n for at, n in texts.items() if np.allclose(at, middle, atol=1e-6))
        out[name] = (left, right, bottom, top)
    return out


def _reader(name: str, group: int) -> tuple[str, str]:
    """Box and input of a reader, from its name."""
    match = re.fullmatch(r"a(\d+)\.h(\d+)<([qkv])>", name)
    if match is None:
        return name, "mlp" if name.startswith("m") else name
    layer, head, part = match.groups()
    kind = "kv" if group > 1 and part in "kv" else "h"
    return f"a{layer}.{kind}{head}", part


def test_every_edge_runs_from_its_writer_to_its_reader_in_its_colour(circuit: Circuit) -> None:
    figure = plots.circuit_drawing(circuit.to_dataset())
    boxes = _boxes(figure)
    (ax,) = figure.axes
    found = []
    for patch in _edges(figure):
        (x0, y0), (x1, y1) = patch.get_path().vertices[[0, -1]]
        src = [n for n, (a, b, _, top) in boxes.items() if a < x0 < b and abs(y0 - top) < 1e-6]
        dst = [n for n, (a, b, low, _) in boxes.items() if a < x1 < b and abs(y1 - low) < 1e-6]
        colour = to_hex(patch.get_edgecolor()[:3]).upper()
        found.append((*(src or ["input"]), *(dst or ["logits"]), colour))
    colours = {kind: colour.upper() for kind, (colour, _) in READERS.items()}
    wanted = []
    for src, dst in circuit.edges():
        box, reader = _reader(dst, circuit.graph.group)
        wanted.append((src, box, colours[reader]))
    assert sorted(found) == sorted(wanted)
    assert {b for b in boxes if "kv" not in b} <= set(circuit.nodes) | {"input"} | {
        box for _, box, _ in wanted
    }
    assert ax.texts


def test_edges_run_upward_and_touch_no_box_on_their_way(circuit: Circuit) -> None:
    figure = plots.circuit_drawing(circuit.to_dataset())
    boxes = np.array(list(_boxes(figure).values()))
    for patch in _edges(figure):
        (line,) = patch.get_path().interpolated(1).to_polygons(closed_only=False)
        x, y = line.T
        assert (np.diff(y) >= -1e-9).all()
        inside = (
            (x[:, None] > boxes[:, 0]) & (x[:, None] < boxes[:, 1])
            & (y[:, None] > boxes[:, 2] + 1e-6) & (y[:, None] < boxes[:, 3] - 1e-6)
        )  # fmt: skip
        assert not inside.any()


def test_boxes_stand_apart_and_later_layers_higher(circuit: Circuit) -> None:
    boxes = _boxes(plots.circuit_drawing(circuit.to_dataset()))
    for name, (left, right, low, _) in boxes.items():
        layer = int(re.match(r"[am](\d+)", name).group(1))  # type: ignore[union-attr]
        for other, (a, b, c, _) in boxes.items():
            if other != name and abs(c - low) < 1e-6:
                assert b < left or a > right
            later = int(re.match(r"[am](\d+)", other).group(1))  # type: ignore[union-attr]
            assert (later <= layer) or c > low


def test_width_is_the_size_of_the_score_and_dashes_work_against(circuit: Circuit) -> None:
    assert circuit.scores is not None
    scores = np.array([circuit.scores[circuit.graph.index(s, d)] for s, d in circuit.edges()])
    patches = _edges(plots.circuit_drawing(circuit.to_dataset()))
    widths = np.array([p.get_linewidth() for p in patches])
    expected = np.sort(np.maximum(0.7, 3.4 * np.abs(scores) / np.abs(scores).max()))
    np.testing.assert_allclose(np.sort(widths), expected)
    # a metric of refusal: an edge that raises it when corrupted works against refusal
    assert sum(p.get_linestyle() != "solid" and p.get_linestyle() != "-" for p in patches) == int(
        (scores > 0).sum()
    )
    divergence = Circuit(circuit.graph, circuit.kept, circuit.scores, {"metric": "kl"})
    patches = _edges(plots.circuit_drawing(divergence.to_dataset()))
    assert sum(p.get_linestyle() not in ("solid", "-") for p in patches) == int((scores < 0).sum())


def test_heads_that_share_a_key_value_head_are_tied_to_it() -> None:
    circuit = random_circuit(GRAPHS["grouped"])
    figure = plots.circuit_drawing(circuit.to_dataset())
    boxes = _boxes(figure)
    assert any(".kv" in name for name in boxes)
    (ax,) = figure.axes
    tied = set()
    for line in ax.lines:
        if len(line.get_xdata()) == 2 and line.get_ydata()[0] != line.get_ydata()[1]:
            (x0, x1), (y0, y1) = line.get_xdata(), line.get_ydata()
            (kv,) = (
                n for n, (a, b, _, top) in boxes.items() if a < x0 < b and abs(y0 - top) < 1e-6
            )
            (head,) = (
                n for n, (a, b, low, _) in boxes.items() if a < x1 < b and abs(y1 - low) < 1e-6
            )
            tied.add((kv, head))
    wanted = set()
    for name in boxes:
        if match := re.fullmatch(r"a(\d+)\.h(\d+)", name):
            kv = f"a{match[1]}.kv{int(match[2]) // 2}"
            if kv in boxes:
                wanted.add((kv, name))
    assert tied == wanted
    assert tied


def test_heads_and_mlp_of_a_parallel_block_stand_side_by_side() -> None:
    graph = GRAPHS["parallel"]
    every = Circuit(graph, graph.mask)
    boxes = _boxes(plots.circuit_drawing(every.to_dataset()))
    assert boxes["m1"][2] == boxes["a1.h0"][2]
    plain = GRAPHS["plain"]
    boxes = _boxes(plots.circuit_drawing(Circuit(plain, plain.mask).to_dataset()))
    assert boxes["m1"][2] > boxes["a1.h0"][2]


def test_of_a_large_circuit_the_strongest_edges_are_drawn_and_it_says_so() -> None:
    graph = EdgeGraph(n_layers=6, n_heads=6, n_kv_heads=6)
    scores = np.where(graph.mask, np.random.default_rng(0).normal(0, 1, graph.mask.shape), np.nan)
    every = Circuit(graph, graph.mask, scores)
    figure = plots.circuit_drawing(every.to_dataset())
    assert len(_edges(figure)) == MAX_EDGES
    assert f"the {MAX_EDGES} strongest of {graph.n_edges:,} edges" in plots.to_svg(figure)
    few = plots.circuit_drawing(every.to_dataset(), max_edges=3)
    strongest = np.sort(np.abs(scores[graph.mask]))[-3:]
    widths = sorted(p.get_linewidth() for p in _edges(few))
    np.testing.assert_allclose(widths, 3.4 * strongest / strongest[-1])


def test_the_same_circuit_gives_the_same_bytes_and_text_stays_text(circuit: Circuit) -> None:
    first, second = (plots.to_svg(plots.circuit_drawing(circuit.to_dataset())) for _ in range(2))
    assert first == second
    root = ET.fromstring(first)
    texts = {"".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")}
    assert set(_boxes(plots.circuit_drawing(circuit.to_dataset()))) <= texts
    assert "token embedding (input)" in texts


def test_a_circuit_without_scores_is_drawn_in_one_width() -> None:
    circuit = random_circuit(GRAPHS["plain"])
    figure = plots.circuit_drawing(Circuit(circuit.graph, circuit.kept).to_dataset())
    assert {p.get_linewidth() for p in _edges(figure)} == {1.2}
    assert "|score|" not in plots.to_svg(figure)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ds: ds.drop_vars("in_circuit"), r"needs in_circuit \(src, dst\)"),
        (lambda ds: ds.assign(in_circuit=ds["in_circuit"] & False), "the circuit is empty"),
        (lambda ds: ds.assign_attrs(n_heads=None).drop_attrs(), "do not describe a graph"),
    ],
)
def test_what_cannot_be_drawn_is_said(change: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plots.circuit_drawing(change(random_circuit(GRAPHS["plain"]).to_dataset()))


@pytest.mark.parametrize("end", ["svg", "png", "pdf"])
def test_a_drawing_is_written_the_same_each_time(end: str, tmp_path: Any) -> None:
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    data = []
    for turn in range(2):
        figure = plots.circuit_drawing(random_circuit(GRAPHS["plain"]).to_dataset())
        path = plots.save(figure, tmp_path / f"{turn}.{end}")
        data.append(path.read_bytes())
    assert data[0] == data[1]
    assert data[0].startswith(starts[end])


def test_a_drawing_that_cannot_be_written_is_one_sentence(tmp_path: Any) -> None:
    figure = plots.circuit_drawing(random_circuit(GRAPHS["plain"]).to_dataset())
    with pytest.raises(RequestError, match=r"end the file in \.svg, \.png or \.pdf"):
        plots.save(figure, tmp_path / "c.gif")
    with pytest.raises(RequestError, match="cannot be written"):
        plots.save(figure, tmp_path / "none" / "c.svg")
