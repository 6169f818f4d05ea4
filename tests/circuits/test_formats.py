"""Circuit files: what is written says the circuit, by readers that are not ours, and comes back."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import jsonschema
import networkx as nx
import numpy as np
import pytest
import torch

from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits._circuit import Circuit
from refusal_nn.circuits._formats import export, read
from refusal_nn.errors import RequestError
from refusal_nn.testing import GRAPHS, random_circuit

SCHEMA = json.loads(Path(__file__).with_name("neuronpedia.schema.json").read_text())
CFG = {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 8}


@pytest.fixture(params=list(GRAPHS))
def circuit(request: pytest.FixtureRequest) -> Circuit:
    return random_circuit(GRAPHS[request.param])


def _theirs(layers: int, heads: int, parallel: bool) -> tuple[list[str], list[str], set[str]]:
    """Nodes and edges of EAP-IG's graph, from its description: one reader a head and input."""
    src, dst, edges = ["input"], [], set()
    for layer in range(layers):
        mine = [f"a{layer}.h{h}" for h in range(heads)]
        readers = [f"{head}<{part}>" for part in "qkv" for head in mine]
        edges |= {f"{s}->{d}" for s in src for d in readers}
        edges |= {f"{s}->m{layer}" for s in src + ([] if parallel else mine)}
        src += [*mine, f"m{layer}"]
        dst += [*readers, f"m{layer}"]
    return src, [*dst, "logits"], edges | {f"{s}->logits" for s in src}


def _group_of(edge: str, group: int) -> str:
    """The edge of the grouped graph that an edge into a head's key or value is a copy of."""
    return re.sub(
        r"\.h(\d+)<([kv])>$", lambda m: f".h{int(m.group(1)) // group}<{m.group(2)}>", edge
    )


def _named(circuit: Circuit) -> dict[str, float]:
    return {
        f"{s}->{d}": float(circuit.scores[circuit.graph.index(s, d)])  # type: ignore[index]
        for s, d in circuit.edges()
    }


def test_json_holds_every_edge_of_eap_igs_graph_and_the_shares_add_up(
    circuit: Circuit, tmp_path: Path
) -> None:
    tree = json.loads(export(circuit, tmp_path / "c.json").read_text())
    graph = circuit.graph
    src, _, edges = _theirs(graph.n_layers, graph.n_heads, graph.parallel)
    assert tree["cfg"] == {
        "n_layers": graph.n_layers,
        "n_heads": graph.n_heads,
        "parallel_attn_mlp": graph.parallel,
        "d_model": 16,
    }
    assert set(tree["edges"]) == edges
    assert list(tree["nodes"]) == [*src, "logits"]
    kept = _named(circuit)
    inside = {e for e, entry in tree["edges"].items() if entry["in_graph"]}
    assert {_group_of(e, graph.group) for e in inside} == set(kept)
    total: dict[str, float] = {}
    for edge, entry in tree["edges"].items():
        name = _group_of(edge, graph.group)
        total[name] = total.get(name, 0.0) + entry["score"]
    for edge, score in kept.items():  # theirs is of a loss: positive supports the behaviour
        assert total[edge] == pytest.approx(-score, rel=1e-12)


def test_a_copy_of_a_shared_edge_goes_to_each_head_that_something_reads(tmp_path: Path) -> None:
    graph = EdgeGraph(n_layers=2, n_heads=4, n_kv_heads=2)
    edges = [("input", "a0.h1<v>"), ("a0.h2", "logits"), ("a0.h3", "a1.h0<q>"), ("a1.h0", "logits")]
    made = Circuit.from_edges(graph, edges, d_model=8)
    tree = json.loads(export(made, tmp_path / "c.json").read_text())
    inside = {e for e, entry in tree["edges"].items() if entry["in_graph"]}
    # value head 1 belongs to heads 2 and 3, which both are read
    assert inside == {
        "input->a0.h2<v>", "input->a0.h3<v>", "a0.h2->logits", "a0.h3->a1.h0<q>", "a1.h0->logits",
    }  # fmt: skip
    fewer = Circuit.from_edges(graph, edges[:2], d_model=8)
    tree = json.loads(export(fewer, tmp_path / "d.json").read_text())
    inside = {e for e, entry in tree["edges"].items() if entry["in_graph"]}
    assert inside == {"input->a0.h2<v>", "a0.h2->logits"}


def test_pt_holds_tensors_in_eap_igs_order(circuit: Circuit, tmp_path: Path) -> None:
    path = export(circuit, tmp_path / "c.pt")
    tree = torch.load(path, weights_only=True)
    graph = circuit.graph
    src, dst, edges = _theirs(graph.n_layers, graph.n_heads, graph.parallel)
    assert (tree["src_nodes"], tree["dst_nodes"]) == (src, dst)
    assert tree["edges_scores"].shape == tree["edges_in_graph"].shape == (len(src), len(dst))
    assert tree["edges_scores"].dtype == torch.float32
    assert tree["edges_in_graph"].dtype == tree["nodes_in_graph"].dtype == torch.bool
    inside = {f"{src[s]}->{dst[d]}" for s, d in tree["edges_in_graph"].nonzero().tolist()}
    assert inside <= edges
    assert {_group_of(e, graph.group) for e in inside} == set(_named(circuit))
    assert not tree["edges_scores"].isnan().any()
    nodes = {src[i] for i in tree["nodes_in_graph"].nonzero().ravel().tolist()}
    assert nodes == {edge.split("->")[0] for edge in inside}


@pytest.mark.parametrize("end", ["json", "pt"])
def test_a_circuit_comes_back_as_it_was(circuit: Circuit, end: str, tmp_path: Path) -> None:
    path = export(circuit, tmp_path / f"c.{end}")
    back = read(path, circuit.graph)
    assert back.edges() == circuit.edges()
    np.testing.assert_allclose(back.scores, circuit.scores, rtol=1e-14 if end == "json" else 2e-7)
    assert back.attrs["model"] == "random"
    assert back.attrs["weights_hash"] == "ab" * 32
    again = export(back, tmp_path / f"again.{end}")
    if end == "json":
        assert json.loads(again.read_text())["cfg"]["d_model"] == 16


def test_scores_of_a_divergence_keep_their_sign(tmp_path: Path) -> None:
    made = random_circuit(GRAPHS["plain"], metric="kl")
    path = export(made, tmp_path / "c.json")
    edge = made.edges()[0]
    score = json.loads(path.read_text())["edges"]["->".join(edge)]["score"]
    assert made.scores is not None
    assert score == made.scores[made.graph.index(*edge)]
    np.testing.assert_array_equal(read(path, made.graph).scores, made.scores)


@pytest.mark.parametrize("end", ["json", "pt"])
def test_a_circuit_without_scores_comes_back_without_them(end: str, tmp_path: Path) -> None:
    bare = random_circuit(GRAPHS["grouped"])
    bare = Circuit(bare.graph, bare.kept, None, bare.attrs)
    back = read(export(bare, tmp_path / f"c.{end}"), bare.graph)
    assert back.scores is None
    assert back.edges() == bare.edges()
    if end == "json":
        tree = json.loads((tmp_path / "c.json").read_text())
        assert all(e["score"] == float(e["in_graph"]) for e in tree["edges"].values())


def _foreign(tmp_path: Path, heads: int = 4, **changes: Any) -> Path:
    """A file as EAP-IG itself writes it, without anything of ours: two edges in the circuit."""
    src, _, edges = _theirs(2, heads, False)
    tree: dict[str, Any] = {
        "cfg": {"n_layers": 2, "n_heads": heads, "parallel_attn_mlp": False, "d_model": 8},
        "nodes": {name: {"in_graph": False} for name in [*src, "logits"]},
        "edges": {e: {"score": 0.25, "in_graph": False} for e in sorted(edges)},
    }
    for edge in ("input->a0.h0<k>", "a0.h0->logits"):
        tree["edges"][edge] = {"score": -1.5, "in_graph": True}
    tree.update(changes)
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps(tree))
    return path


def test_a_foreign_file_is_folded_onto_shared_inputs(tmp_path: Path) -> None:
    graph = EdgeGraph(n_layers=2, n_heads=4, n_kv_heads=2)
    found = read(_foreign(tmp_path), graph)
    # head 1 shares the input, but nothing reads it, so it has no say
    assert found.edges() == [("input", "a0.h0<k>"), ("a0.h0", "logits")]
    assert found.scores is not None
    assert found.scores[graph.index("input", "a0.h0<k>")] == 1.5 - 0.25
    assert found.scores[graph.index("input", "a0.h1<k>")] == -2 * 0.25
    assert found.scores[graph.index("a0.h0", "logits")] == 1.5


def test_an_edge_kept_for_some_heads_of_a_group_is_an_error_unless_told(tmp_path: Path) -> None:
    graph = EdgeGraph(n_layers=2, n_heads=4, n_kv_heads=2)
    path = _foreign(tmp_path)
    tree = json.loads(path.read_text())
    tree["edges"]["a0.h1->logits"]["in_graph"] = True
    path.write_text(json.dumps(tree))
    with pytest.raises(RequestError, match=r"input to the k input of only some of a0\.h0, a0\.h1"):
        read(path, graph)
    edge = ("input", "a0.h0<k>")
    assert edge in read(path, graph, groups="any").edges()
    assert edge not in read(path, graph, groups="all").edges()
    with pytest.raises(RequestError, match=r"groups is 'some'; choose same, any, all"):
        read(path, graph, groups="some")


def test_impossible_entries_of_a_foreign_matrix_are_not_edges(tmp_path: Path) -> None:
    circuit = random_circuit(GRAPHS["plain"])
    path = export(circuit, tmp_path / "c.pt")
    tree = torch.load(path, weights_only=True)
    tree["edges_in_graph"][-1, :] = True  # the last MLP, as node-level selection leaves it
    torch.save(tree, tmp_path / "d.pt")
    found = read(tmp_path / "d.pt", circuit.graph)
    extra = set(found.edges()) - set(circuit.edges())
    assert extra <= {("m2", "logits")}


def test_networkx_reads_the_graphml(circuit: Circuit, tmp_path: Path) -> None:
    path = export(circuit, tmp_path / "c.graphml")
    found = nx.read_graphml(path, force_multigraph=True)
    graph = circuit.graph
    assert found.is_directed()
    assert int(found.graph["n_kv_heads"]) == graph.n_kv_heads
    assert found.graph["metric"] == "projection"
    edges = {d["edge"]: d for _, _, d in found.edges(data=True) if d["reader"] != "shares"}
    scores = _named(circuit)
    assert {e: d["score"] for e, d in edges.items()} == scores
    for src, dst, data in found.edges(data=True):
        if data["reader"] == "shares":
            layer, kv = re.fullmatch(r"a(\d+)\.kv(\d+)", src).groups()  # type: ignore[union-attr]
            head = re.fullmatch(rf"a{layer}\.h(\d+)", dst).group(1)  # type: ignore[union-attr]
            assert int(head) // graph.group == int(kv)
            continue
        writer, reader = data["edge"].split("->")
        assert src == writer
        assert found.nodes[dst]["kind"] in ("head", "kv", "mlp", "logits")
        match = re.fullmatch(r"a(\d+)\.h(\d+)<([qkv])>", reader)
        if match and graph.group > 1 and match.group(3) in "kv":
            assert (dst, data["reader"]) == (f"a{match[1]}.kv{match[2]}", match.group(3))
        elif match:
            assert (dst, data["reader"]) == (f"a{match[1]}.h{match[2]}", match.group(3))
        else:
            assert dst == reader
    assert nx.is_directed_acyclic_graph(found)


_ID = r'"(?:[^"\\]|\\.)*"'
_VALUE = rf"(?:{_ID}|[\w.+-]+)"
_ATTRIBUTES = rf"\[(?:{_VALUE}\s*=\s*{_VALUE}(?:,\s*)?)*\]"
_STATEMENT = re.compile(
    rf"""\s*(?:
        //[^\n]*\n
      | (?:node|edge)\s*{_ATTRIBUTES}\s*;
      | \w+\s*=\s*{_VALUE}\s*;
      | \{{\s*rank\s*=\s*same\s*;\s*(?:(?P<node>{_ID})\s*{_ATTRIBUTES}\s*;\s*)+\}}
      | (?P<src>{_ID})\s*->\s*(?P<dst>{_ID})\s*(?P<how>{_ATTRIBUTES})\s*;
    )""",
    re.VERBOSE,
)


def _parsed_dot(text: str) -> tuple[set[str], list[tuple[str, str, str]]]:
    """Nodes and edges of a DOT text, by the part of the grammar we use; all of it must parse."""
    start = re.match(r"\s*digraph\s+\w+\s*\{", text)
    assert start
    at, nodes, edges = start.end(), set[str](), []
    while match := _STATEMENT.match(text, at):
        if match["src"]:
            edges.append((match["src"][1:-1], match["dst"][1:-1], match["how"]))
        nodes |= {n[1:-1] for n in re.findall(rf"({_ID})\s*\[shape", match.group())}
        at = match.end()
    assert text[at:].strip() == "}", text[at : at + 80]
    return nodes, edges


def test_dot_text_parses_and_holds_the_circuit(circuit: Circuit, tmp_path: Path) -> None:
    nodes, edges = _parsed_dot(export(circuit, tmp_path / "c.dot").read_text())
    assert {n for s, d, _ in edges for n in (s, d)} == nodes
    drawn = [re.search(r'tooltip="(\S+->\S+) (\S+)"', how) for _, _, how in edges]
    found = {m.group(1): float(m.group(2)) for m in drawn if m}
    assert found == _named(circuit)
    for (_, _, how), match in zip(edges, drawn, strict=True):
        if match:
            assert ("style=dashed" in how) == (float(match.group(2)) > 0)
        else:
            assert "style=dotted" in how


def test_names_from_strangers_stay_text_in_diagrams(tmp_path: Path) -> None:
    attack = 'x"]; evil -> "y\\" <b>&\n} \x00'
    circuit = random_circuit(GRAPHS["plain"], model=attack)
    _, edges = _parsed_dot(export(circuit, tmp_path / "c.dot").read_text())
    assert all("evil" not in s + d for s, d, _ in edges)
    found = nx.read_graphml(export(circuit, tmp_path / "c.graphml"), force_multigraph=True)
    assert found.graph["model"] == attack.replace("\x00", "\N{REPLACEMENT CHARACTER}")


def test_neuronpedia_graphs_fit_the_published_fields(circuit: Circuit, tmp_path: Path) -> None:
    path = export(circuit, tmp_path / "My circuit_1.json", "neuronpedia")
    tree = json.loads(path.read_text())
    jsonschema.Draft7Validator(SCHEMA).validate(tree)
    ids = [n["node_id"] for n in tree["nodes"]]
    assert len(ids) == len(set(ids))
    assert tree["metadata"]["slug"] == "my-circuit-1"
    assert tree["metadata"]["scan"] == "random"
    by_id = {n["node_id"]: n for n in tree["nodes"]}
    # what the viewer asks beyond the schema
    assert all(0 <= n["ctx_idx"] < len(tree["metadata"]["prompt_tokens"]) for n in tree["nodes"])
    places = [(n["layer"], n["feature"], n["ctx_idx"]) for n in tree["nodes"]]
    assert len(places) == len(set(places))
    for node in tree["nodes"]:
        assert (node["feature_type"] == "logit") == ("(p=" in node["clerp"])
    assert set(tree["qParams"]["pinnedIds"]) == set(ids)
    pairs = [(link["source"], link["target"]) for link in tree["links"]]
    assert len(pairs) == len(set(pairs))
    total: dict[tuple[str, str], float] = {}
    kinds = {"embedding": "input", "logit": "logits"}
    names = {i: kinds.get(n["feature_type"], n["clerp"]) for i, n in by_id.items()}
    for link in tree["links"]:
        total[names[link["source"]], names[link["target"]]] = link["weight"]
    wanted: dict[tuple[str, str], float] = {}
    if circuit.graph.group == 1:
        for edge, score in _named(circuit).items():
            writer, reader = edge.split("->")
            pair = (writer, reader.split("<")[0])
            wanted[pair] = wanted.get(pair, 0.0) - score
        assert total == pytest.approx(wanted)


def test_the_schema_is_not_one_that_anything_passes(tmp_path: Path) -> None:
    path = export(random_circuit(GRAPHS["plain"]), tmp_path / "c.json", "neuronpedia")
    tree = json.loads(path.read_text())
    for break_it in (
        lambda t: t.pop("qParams"),
        lambda t: t["metadata"].pop("prompt"),
        lambda t: t["nodes"][0].pop("clerp"),
        lambda t: t["nodes"][0].update(ctx_idx="0"),
        lambda t: t["links"][0].update(weight="1"),
        lambda t: t["metadata"].update(promt="x"),
    ):
        broken = json.loads(json.dumps(tree))
        break_it(broken)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.Draft7Validator(SCHEMA).validate(broken)


def test_neuronpedia_needs_scores_and_a_node_its_viewer_can_place(tmp_path: Path) -> None:
    scored = random_circuit(GRAPHS["plain"])
    bare = Circuit(scored.graph, scored.kept, None)
    with pytest.raises(RequestError, match="links need weights"):
        export(bare, tmp_path / "c.json", "neuronpedia")
    low = Circuit.from_edges(scored.graph, [("input", "m0"), ("m0", "logits")])
    low = Circuit(low.graph, low.kept, scored.scores)
    with pytest.raises(RequestError, match="node above layer 0"):
        export(low, tmp_path / "c.json", "neuronpedia")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    circuit = random_circuit(GRAPHS["grouped"])
    for end in ("json", "pt"):
        path = export(circuit, tmp_path / f"c.{end}")
        for other in (EdgeGraph(3, 4, 4), EdgeGraph(3, 4, 2, True), EdgeGraph(4, 4, 2)):
            with pytest.raises(RequestError, match=r"is of another model: .*\(model: "):
                read(path, other)

        class Other:
            d_model = 16
            arch = type(
                "Arch", (), {"n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "parallel": False}
            )

            def identity(self) -> dict[str, str]:
                return {"model": "other", "weights_hash": "cd" * 32}

        with pytest.raises(RequestError, match=r"made from 'random', whose weights_hash differs"):
            read(path, Other())  # type: ignore[arg-type]


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize("how", ["torch", "pickle", "text", "empty"])
def test_a_pickle_that_is_not_tensors_is_refused_and_not_run(how: str, tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    if how == "torch":
        torch.save({"cfg": _Evil()}, path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(_Evil()))
    else:
        path.write_text("no tensors" if how == "text" else "")
    with pytest.raises(RequestError, match="does not hold tensors and plain data only"):
        read(path, GRAPHS["plain"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cfg": {}}, "cfg must give"),
        ({"cfg": {**CFG, "parallel_attn_mlp": True}}, "another model"),
        ({"cfg": {**CFG, "d_model": None}}, "d_model of its cfg is None"),
        ({"cfg": {**CFG, "d_model": "x"}}, "d_model of its cfg is 'x'"),
        ({"cfg": {**CFG, "d_model": True}}, "d_model of its cfg is True"),
        ({"edges": {"m0->m1": {"score": float("nan"), "in_graph": True}}}, "not finite"),
        ({"nodes": []}, "keyed by name"),
        ({"nodes": {"m0": {"in_graph": True, "neurons": [True, False]}}}, "some neurons of m0"),
        ({"edges": {"m1->m0": {"score": 0.0, "in_graph": True}}}, "an edge 'm1->m0' that"),
        ({"edges": {"m0->m1": {"score": 0.0}}}, "needs a number 'score' and 'in_graph'"),
        ({"edges": {"m0->m1": {"score": "much", "in_graph": True}}}, "needs a number"),
        ({"edges": {"m0->m1": {"score": 0.0, "in_graph": 1}}}, "'in_graph' of edge 'm0->m1' is 1"),
        ({"edges": {"m0->m1": {"score": 1e999, "in_graph": True}}}, "not finite"),
        ({"edges": None}, "keyed by name"),
    ],
)
def test_wrong_json_is_one_sentence(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = _foreign(tmp_path, **change)
    with pytest.raises(RequestError, match=re.escape(message)):
        read(path, EdgeGraph(2, 4, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"src_nodes": ["input"]}, "src_nodes are not the nodes"),
        ({"edges_scores": torch.zeros(3, 3)}, "edges_scores must be a tensor of shape"),
        ({"edges_in_graph": [True]}, "edges_in_graph must be a tensor"),
        ({"neurons_in_graph": torch.zeros(10, 16)}, "only some neurons"),
        ({"cfg": "none"}, "cfg must give"),
    ],
)
def test_wrong_tensors_are_one_sentence(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    circuit = random_circuit(GRAPHS["plain"])
    tree = torch.load(export(circuit, tmp_path / "c.pt"), weights_only=True)
    torch.save({**tree, **change}, tmp_path / "d.pt")
    with pytest.raises(RequestError, match=message):
        read(tmp_path / "d.pt", circuit.graph)
    torch.save([1], tmp_path / "e.pt")
    with pytest.raises(RequestError, match="it holds no cfg"):
        read(tmp_path / "e.pt", circuit.graph)


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    circuit = random_circuit(GRAPHS["plain"])
    with pytest.raises(
        RequestError, match=r"end it in \.json, \.pt, \.graphml, \.dot, \.gv, or name"
    ):
        export(circuit, tmp_path / "c.xyz")
    with pytest.raises(RequestError, match="cannot tell the format"):
        export(circuit, tmp_path / "c.json", "eap")
    with pytest.raises(RequestError, match="no folder"):
        export(circuit, tmp_path / "none" / "c.json")
    (tmp_path / "there.dot").write_text("mine")
    with pytest.raises(RequestError, match="exists"):
        export(circuit, tmp_path / "there.dot")
    assert (tmp_path / "there.dot").read_text() == "mine"
    narrow = Circuit(circuit.graph, circuit.kept, circuit.scores)
    with pytest.raises(RequestError, match="pass d_model"):
        export(narrow, tmp_path / "c.pt")
    assert export(narrow, tmp_path / "c.pt", d_model=4).exists()
    with pytest.raises(RequestError, match="cannot be read"):
        read(tmp_path / "gone.json", circuit.graph)
    (tmp_path / "not.json").write_text("{")
    with pytest.raises(RequestError, match="is not JSON"):
        read(tmp_path / "not.json", circuit.graph)
    drawing = export(circuit, tmp_path / "c.graphml")
    with pytest.raises(RequestError, match="graphml is only written"):
        read(drawing, circuit.graph)
    viewer = export(circuit, tmp_path / "np.json", "neuronpedia")
    with pytest.raises(RequestError, match="Neuronpedia graph, which is only written"):
        read(viewer, circuit.graph)


def test_the_same_circuit_gives_the_same_text(tmp_path: Path) -> None:
    for name, kind in (
        ("a.json", None),
        ("b.json", "neuronpedia"),
        ("c.dot", None),
        ("d.graphml", None),
    ):
        texts = []
        for turn in ("one", "two"):
            (tmp_path / turn).mkdir(exist_ok=True)
            path = export(random_circuit(GRAPHS["grouped"]), tmp_path / turn / name, kind)
            texts.append(path.read_bytes())
        assert texts[0] == texts[1]
