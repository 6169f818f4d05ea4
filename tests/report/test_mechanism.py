"""Reports on patching, attribution and circuits say what the runs hold, for every subset of them."""

from __future__ import annotations

import re
from itertools import combinations

import numpy as np
import pytest
import xarray as xr

from refusal_nn import report
from refusal_nn.report._page import Page, Paragraph, Picture, Samples, Table
from tests.plots import mechanism
from tests.report import synthetic
from tests.report.test_report import ATTACK, parsed

SECTIONS = {
    "patch-positions": "Where the decision is",
    "patch-heads": "Refusal heads",
    "attribute-nodes": "Attribution to nodes",
    "attribute-edges": "Attribution to edges",
    "circuit-discover": "The circuit",
    "circuit-evaluate": "What the circuit does alone",
    "circuit-compare": "Circuits compared",
}


@pytest.fixture(scope="module")
def page() -> Page:
    return report.build([make() for make in mechanism.RUNS.values()])


def _tables(page: Page, section: str) -> list[Table]:
    return [
        block
        for part in page.sections
        if part.title == section
        for block in part.blocks
        if isinstance(block, Table)
    ]


def _text(page: Page, section: str) -> str:
    return " ".join(
        block.text
        for part in page.sections
        if part.title == section
        for block in part.blocks
        if isinstance(block, Paragraph)
    )


def _percent(text: str) -> float:
    return float(text.split(" %")[0].replace("−", "-")) / 100


def _pictures(page: Page) -> list[str]:
    return [b.name for s in page.sections for b in s.blocks if isinstance(b, Picture)]


@pytest.mark.parametrize("size", [1, 2])
def test_every_subset_of_runs_makes_a_page(size: int) -> None:
    for kinds in combinations(mechanism.RUNS, size):
        page = report.build([mechanism.RUNS[k]() for k in kinds])
        titles = [s.title for s in page.sections]
        assert [t for t in titles if t in SECTIONS.values()] == [
            SECTIONS[k] for k in mechanism.RUNS if k in kinds
        ]
        names = _pictures(page)
        assert len(names) == len(set(names))
        text, files = report.to_markdown(page)
        assert set(re.findall(r"\(figures/([^)]+)\)", text)) == set(files)


def test_the_page_is_well_formed_and_its_links_lead_somewhere(page: Page) -> None:
    checker = parsed(report.to_html(page))
    ids = [attrs["id"] for _, attrs in checker.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [str(attrs["href"])[1:] for tag, attrs in checker.tags if tag == "a"]
    assert len(links) == len(SECTIONS) + 3
    assert set(links) <= set(ids)


def test_a_study_of_direction_and_mechanism_is_one_page() -> None:
    runs = [synthetic.score_table(), synthetic.evaluation(), mechanism.positions()]
    page = report.build([*runs, mechanism.evaluated()])
    titles = [s.title for s in page.sections]
    assert titles.index("By category") < titles.index("Where the decision is")
    assert "arXiv:2406.11717" in page.footer
    assert "arXiv:2403.17806" in page.footer
    alone = report.build([mechanism.positions()])
    assert "2406.11717" not in alone.footer
    caption = _tables(page, "What was run")[0].caption
    assert caption == "Checked here: selection and test prompts share no prompt and no family."


def test_the_best_place_of_each_site_is_the_largest_mean(page: Page) -> None:
    data = mechanism.positions()
    (table,) = _tables(page, "Where the decision is")
    for row, site in zip(table.rows, data["site"].values, strict=True):
        here = data["recovery_mean"].sel(site=site)
        assert _percent(row[3]) == pytest.approx(float(here.max()), abs=5e-4)
        layer, position = int(row[1]), int(row[2].replace("−", "-"))
        assert float(here.sel(layer=layer, position=position)) == float(here.max())
    assert "6 pairs; 1 pair left out" in _text(page, "Where the decision is")


def test_refusal_heads_are_listed_with_their_roles_and_what_they_do_together(page: Page) -> None:
    found, joint, cascade, _ = _tables(page, "Refusal heads")
    assert [row[:3] for row in found.rows] == [
        ["a1.h2", "gate", "single"],
        ["a2.h0", "amplifier", "single"],
    ]
    columns = list(found.columns)
    assert _percent(found.rows[0][columns.index("sufficiency")]) == 0.6
    assert _percent(found.rows[0][columns.index("necessity")]) == 0.8
    assert found.rows[0][columns.index("stability")] == "97 %"
    assert joint.rows[0][1] == "91 % [86, 95]"
    assert joint.rows[0][2:] == ["2 % (5 %)", "0.250", "3"]
    assert cascade.rows == [["a1.h2", "", "88"]]


def test_what_patched_models_say_is_counted_and_shown(page: Page) -> None:
    said = _tables(page, "Refusal heads")[-1]
    assert [row[:3] for row in said.rows] == [
        ["harmful prompts as they are", "", "100 % [90, 100]"],
        ["harmless prompts as they are", "", "0 % [0, 10]"],
        ["Sufficiency: into harmless prompts", "refusal heads", "83.3 % [73.3, 93.3]"],
        ["Necessity: into harmful prompts", "refusal heads", "16.7 % [6.7, 26.7]"],
    ]
    (samples,) = (b.samples for s in page.sections for b in s.blocks if isinstance(b, Samples))
    shown = [(s.prompt, [a.verdict for a in s.answers]) for s in samples]
    assert shown == [
        ("harmless 0", ["complied", "complied"]),
        ("harmless 5", ["complied", "refused"]),
        ("harmful 0", ["refused", "refused"]),
        ("harmful 5", ["refused", "complied"]),
    ]


@pytest.mark.parametrize(("limit", "alone"), [(1.2, False), (None, True)])
def test_completions_that_no_likelihood_gates_are_said_to_be_so(
    limit: float | None, alone: bool
) -> None:
    tree = mechanism.refusal_heads()
    for into in ("sufficiency", "necessity"):
        tree[f"completions_{into}"].attrs["nll_limit"] = limit
    said = _tables(report.build([tree]), "Refusal heads")[-1]
    assert ("by repetition alone" in said.caption) == alone


def test_no_random_sets_of_heads_leave_dashes() -> None:
    run = mechanism.refusal_heads()
    run = xr.DataTree(run.to_dataset().drop_vars(["control_recovery", "draw"], errors="ignore"))
    run["control_p"][:] = np.nan
    joint = _tables(report.build([run]), "Refusal heads")[1]
    assert joint.rows[0][2:] == ["–", "–", "0"]
    assert "p =" not in _text(report.build([run]), "Summary")


def test_without_a_search_the_heads_that_pass_the_test_are_listed() -> None:
    page = report.build([mechanism.heads()])
    (table,) = _tables(page, "Refusal heads")
    assert [row[0] for row in table.rows] == ["a1.h2", "a2.h0"]
    none = mechanism.heads()
    none["head_p_adjusted"][:] = 0.5
    assert "No head moves the metric" in _text(report.build([none]), "Refusal heads")
    nothing = mechanism.refusal_heads()
    nothing["refusal_head"][:] = False
    page = report.build([nothing])
    assert "No head was found" in _text(page, "Refusal heads")
    assert "No single head or small set" in _text(page, "Summary")


def test_the_strongest_edges_come_first_with_their_share(page: Page) -> None:
    data = mechanism.edges()
    (table,) = _tables(page, "Attribution to edges")
    size = np.sort(np.abs(data["edge_score_mean"].values[mechanism.GRAPH.mask]))[::-1]
    for i, (edge, score, share) in enumerate(table.rows):
        src, dst = edge.split(" → ")
        value = float(data["edge_score_mean"].sel(src=src, dst=dst))
        assert abs(value) == size[i]
        shown = [float(v.replace("−", "-")) for v in score.split(" ± ")]
        error = float(data["edge_score_se"].sel(src=src, dst=dst))
        np.testing.assert_allclose(shown, [value, error], atol=0.0051)
        assert share == f"{100 * size[: i + 1].sum() / size.sum():.0f} %"
    half = int((np.cumsum(size) < size.sum() / 2).sum()) + 1
    assert f"lies on {half} edges of {mechanism.GRAPH.n_edges}" in _text(
        page, "Attribution to edges"
    )


def test_node_scores_are_shown_once(page: Page) -> None:
    assert "node-scores" not in _pictures(page)
    assert "node-scores" in _pictures(report.build([mechanism.edges()]))


def test_the_circuit_says_its_size_and_how_stable_it_is(page: Page) -> None:
    run = mechanism.discovered()
    kept, total = int(run.attrs["n_kept"]), int(run.attrs["n_total"])
    text = _text(page, "The circuit")
    assert f"keeps {kept} of {total} edges" in text
    assert kept == 90 or "90 were asked for" in text
    stability = run["stability"].to_dataset()
    assert f"share {float(stability['jaccard']):.2f} of their edges" in text
    verdict = "stable" if float(stability["jaccard"]) > 0.8 else "not stable"
    assert f"the circuit is {verdict}" in text
    (table,) = _tables(page, "The circuit")
    always = stability["inclusion"].values == 1
    assert table.rows[-1][1] == str(int(always.sum()))
    assert table.rows[-1][2] == str(int((always & run["in_circuit"].values).sum()))


def test_a_size_chosen_for_a_target_is_said() -> None:
    run = mechanism.discovered()
    run.attrs["target"] = 0.9
    run["sizes"] = xr.DataTree(
        xr.Dataset({"circuit_metric": (("circuit", "prompt"), np.zeros((7, 11)))})
    )
    text = _text(report.build([run]), "The circuit")
    assert "smallest of 7 sizes tried to reach faithfulness 0.9 on 11 selection pairs" in text


def test_measures_of_the_circuit_have_their_intervals(page: Page) -> None:
    measures, nulls, minimality = _tables(page, "What the circuit does alone")
    shown = {row[0]: row[1] for row in measures.rows}
    assert shown == {
        "faithfulness": "0.920 [0.880, 0.960]",
        "of the complement": "0.060 [0.030, 0.090]",
        "CPR": "0.970 [0.950, 0.990]",
        "CMD": "0.050 [0.040, 0.060]",
    }
    assert "paired BCa bootstrap of clusters" in measures.caption
    null = mechanism.evaluated()["null"].to_dataset()
    for row, kind in zip(nulls.rows, null["null"].values, strict=True):
        draws = null["faithfulness"].sel(null=kind).values
        assert row[:2] == [kind, "19"]
        assert row[2:] == [
            f"{np.median(draws):.3f}".replace("-", "−"), f"{draws.max():.3f}", "0.050"
        ]  # fmt: skip
    found = mechanism.evaluated()["minimality"].to_dataset()
    needed = int((found["edge_effect_low"] > 0).sum())
    assert f"{needed} of {found.sizes['edge']} edges lose more" in minimality.caption
    assert "(p = 0.050 against random circuits and 0.050 against layer-matched" in _text(
        page, "Summary"
    )


def test_an_evaluation_alone_draws_its_circuit_once(page: Page) -> None:
    alone = _pictures(report.build([mechanism.evaluated()]))
    assert alone.count("circuit") == 1
    assert _pictures(page).count("circuit") == 1
    root = mechanism.evaluated().to_dataset()
    bare = report.build([xr.DataTree.from_dict({"/": root})])
    assert len(_tables(bare, "What the circuit does alone")) == 1


def test_comparisons_say_overlap_chance_and_what_one_does_on_the_others_pairs(page: Page) -> None:
    overlap, cross = _tables(page, "Circuits compared")
    tree = mechanism.compared()
    at = tree.to_dataset().sel(circuit="small", other="large")
    (row,) = overlap.rows
    assert row[0] == "small and large"
    assert row[1:3] == [f"{float(at['iou']):.2f}", f"{float(at['node_iou']):.2f}"]
    assert len(row) == len(overlap.columns) == 7
    assert cross.rows[0] == ["small", "0.600 [0.550, 0.650]", "0.550 [0.500, 0.600]"]


def test_two_circuits_of_one_model_are_told_apart_by_their_runs() -> None:
    first, second = mechanism.discovered(), mechanism.discovered(n=60)
    first.attrs["name"], second.attrs["name"] = "large-one", "small-one"
    page = report.build([first, second])
    titles = [s.title for s in page.sections]
    assert {"The circuit: large-one", "The circuit: small-one"} <= set(titles)
    assert "Run small-one: the circuit keeps" in _text(page, "Summary")
    parsed(report.to_html(page))


def test_overlap_of_attribution_and_test_pairs_is_called_out() -> None:
    edges, tested = mechanism.edges(), mechanism.evaluated()
    apart = _tables(report.build([edges, tested]), "What was run")[0].caption
    assert apart.startswith("Checked here: attribution and circuit test")
    edges = edges.assign_coords(family=("prompt", np.array(["test/0"] * 12, dtype=object)))
    shared = _tables(report.build([edges, tested]), "What was run")[0].caption
    assert shared.startswith("Beware: attribution and circuit test share 1 families")


def test_text_from_strangers_never_acts() -> None:
    runs = []
    for make in mechanism.RUNS.values():
        run = make()
        run.attrs |= {"model": ATTACK, "command": ATTACK, "interval": ATTACK, "method": ATTACK}
        runs.append(run)
    compared = mechanism.compared().to_dataset()
    names = np.array([ATTACK, "x"], dtype=object)
    compared = compared.assign_coords(circuit=names, other=names).assign_attrs(model=ATTACK)
    page = report.build([*runs[:-1], compared])
    checker = parsed(report.to_html(page))
    assert not {tag for tag, _ in checker.tags} & {"script", "img", "b"}
    assert not [a for _, attrs in checker.tags for a in attrs if a.startswith("on")]
    text, files = report.to_markdown(page)
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", text)
    outside = re.sub(r'(?m)^<a id="[a-z0-9-]+"></a>$', "", outside)
    outside = re.sub(r"(?m)^>", "", outside)  # our own quotes
    assert not re.search(r"(?<!\\)[<>]", outside)
    assert all("<script" not in svg for svg in files.values())


def test_the_same_runs_give_the_same_bytes_and_stay_as_they_were() -> None:
    runs = [make() for make in mechanism.RUNS.values()]
    before = [run.copy(deep=True) for run in runs]
    pages = [report.to_html(report.build(runs)) for _ in range(2)]
    assert pages[0] == pages[1]
    for run, old in zip(runs, before, strict=True):
        xr.testing.assert_identical(run, old)
