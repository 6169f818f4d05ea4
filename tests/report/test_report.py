"""Reports say what the runs hold, for every subset of runs, and let nothing in them act."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from refusal_nn import report, stats
from refusal_nn.errors import RequestError
from refusal_nn.report._completions import PER_STYLE, draw
from refusal_nn.report._page import Picture, Samples, Table
from tests.report import synthetic

VOID = {"meta", "br", "hr", "img", "link", "input", "path", "use", "image"}
ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)> | **b** [l](http://e.example) `c`'


class Checker(HTMLParser):
    """Collects tags, ids, links and the text of a document, and insists that tags nest."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def parsed(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def results() -> dict[str, xr.Dataset | xr.DataTree]:
    return {
        "extract": synthetic.candidate_table(),
        "score": synthetic.score_table(),
        "select": synthetic.selection_table(),
        "evaluate": synthetic.evaluation(),
    }


@pytest.fixture(scope="module")
def page(results: dict[str, xr.Dataset | xr.DataTree]) -> report.Page:
    return report.build(list(results.values()))


@pytest.fixture(scope="module")
def html(page: report.Page) -> str:
    return report.to_html(page)


def _tables(page: report.Page, section: str) -> list[Table]:
    return [
        block
        for part in page.sections
        if part.title.startswith(section)
        for block in part.blocks
        if isinstance(block, Table)
    ]


def test_html_is_well_formed_self_contained_and_without_script(html: str) -> None:
    checker = parsed(html)
    names = {tag for tag, _ in checker.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attrs in checker.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith(("#", "data:image/png;base64,")), (tag, value)
    assert "@import" not in html
    assert not re.search(r"url\((?!#)", html)


def test_every_link_of_the_contents_leads_to_a_section_and_ids_are_unique(html: str) -> None:
    checker = parsed(html)
    ids = [attrs["id"] for _, attrs in checker.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [str(attrs["href"])[1:] for tag, attrs in checker.tags if tag == "a"]
    assert len(links) >= 10
    assert set(links) <= set(ids)


def test_rates_in_the_page_are_those_of_the_run(
    page: report.Page, results: dict[str, xr.Dataset | xr.DataTree]
) -> None:
    root = results["evaluate"].to_dataset()  # type: ignore[union-attr]
    toxic = root["style"].values == "toxic"
    (effect,) = (t for t in _tables(page, "Behaviour") if "change (points)" in t.columns)
    row = dict(zip(effect.columns, effect.rows[0], strict=True))
    counts = {
        name: int(root["refused"].sel(intervention=name).values[toxic].sum())
        for name in ("baseline", "ablation")
    }
    assert row["n"] == "60"
    assert row["refused at baseline"].startswith(f"{100 * counts['baseline'] / 60:.1f} % [")
    assert row["refused"].startswith(f"{100 * counts['ablation'] / 60:.1f} % [")
    change = 100 * (counts["ablation"] - counts["baseline"]) / 60
    assert row["change (points)"].startswith(f"{change:.1f}".replace("-", "−").removesuffix(".0"))


def test_the_change_has_the_paired_interval_by_family(
    page: report.Page, results: dict[str, xr.Dataset | xr.DataTree]
) -> None:
    root = results["evaluate"].to_dataset()  # type: ignore[union-attr]
    here = root.isel(prompt=np.flatnonzero(root["style"].values == "toxic"))
    after, before = (
        here["refused"].sel(intervention=n).values.astype(float) for n in ("ablation", "baseline")
    )
    found = stats.paired_difference(after, before, cluster=here["family"].values)
    (effect,) = (t for t in _tables(page, "Behaviour") if "change (points)" in t.columns)
    cell = effect.rows[0][list(effect.columns).index("change (points)")]
    ends = [float(x.replace("−", "-")) for x in re.findall(r"[−+]?[\d.]+", cell.split("[")[1])]
    np.testing.assert_allclose(ends, [100 * found.low, 100 * found.high], atol=0.051)


def test_a_change_without_spread_claims_no_interval() -> None:
    tree = synthetic.evaluation()
    root = tree.to_dataset()
    refused = np.zeros(root["refused"].shape, dtype=bool)
    refused[list(synthetic.CONDITIONS).index("addition")] = True
    root = root.assign(refused=(("intervention", "prompt"), refused))
    again = xr.DataTree.from_dict({"/": root, "/rates": synthetic.rate_table(root)})
    (effect,) = (t for t in _tables(report.build([again]), "Behaviour") if "change" in t.columns[5])
    assert [row[5] for row in effect.rows] == ["0", "+100"]
    assert "every prompt changed alike" in effect.caption


def test_the_summary_gives_every_headline_rate_with_its_interval(page: report.Page) -> None:
    (summary,) = (s for s in page.sections if s.title == "Summary")
    (text,) = (b.text for b in summary.blocks)  # type: ignore[union-attr]
    assert text.count("[") == 7
    assert "layer 4, position −1" in text
    assert "random directions of equal norm" in text
    assert "95 % intervals" in text


def test_every_figure_of_rates_says_n_and_how_intervals_were_made(page: report.Page) -> None:
    captions = {
        b.name: b.caption for s in page.sections for b in s.blocks if isinstance(b, Picture)
    }
    assert set(captions) == {
        "refusal-rates", "category-rates", "score-distributions", "candidate-scores",
        "discovery-scores", "direction-norms",
    }  # fmt: skip
    for name in ("refusal-rates", "category-rates"):
        assert re.search(r"n = \d+", captions[name])
        assert "95 % intervals (Wilson)" in captions[name]


def test_the_tally_adds_up_to_all_candidates(page: report.Page) -> None:
    (tally,) = _tables(page, "Candidate")
    assert sum(int(row[1]) for row in tally.rows) == 24
    assert dict(tally.rows)["layer 6 or later (int(0.8 × 8 layers))"] == "6"


def test_the_selection_is_the_smallest_admissible_bypass(page: report.Page) -> None:
    scores = synthetic.score_table()
    allowed = scores["bypass"].where(scores["dropped_by"] == "")
    best = allowed.argmin(["position", "layer"])
    (table,) = _tables(page, "The selected")
    chosen = table.rows[0]
    assert chosen[0] == "selected"
    assert int(chosen[1]) == int(scores["layer"][best["layer"]])
    assert int(chosen[2].replace("−", "-")) == int(scores["position"][best["position"]])
    assert float(chosen[3].replace("−", "-")) == pytest.approx(float(allowed.min()), abs=0.005)


def test_a_select_run_and_its_score_run_agree_on_the_selection(
    results: dict[str, xr.Dataset | xr.DataTree],
) -> None:
    pages = [report.build([results[kind]]) for kind in ("score", "select")]
    rows = [_tables(page, "The selected")[0].rows for page in pages]
    assert rows[0] == rows[1]


def test_a_single_admissible_candidate_is_said_to_be_unranked() -> None:
    scores = synthetic.score_table()
    best = scores["bypass"].argmin(...)
    alone = scores["kl"].where(scores["kl"] < 0, 9.0)
    alone[{k: int(v) for k, v in best.items()}] = 0.01
    text = report.build([scores.assign(kl=alone)]).sections[0].blocks[0].text  # type: ignore[union-attr]
    assert "Of 24 candidates only 1 is admissible, so there is nothing to rank: it is layer" in text
    many = report.build([scores]).sections[0].blocks[0].text  # type: ignore[union-attr]
    assert " are admissible; the rule selects layer " in many


def test_a_table_without_admissible_candidates_says_why() -> None:
    scores = synthetic.score_table()
    none = scores.assign(induce=scores["induce"] * 0 - 1)
    (section,) = (s for s in report.build([none]).sections if s.title == "The selected direction")
    assert "None of 24 candidates is admissible" in section.blocks[0].text  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "kinds",
    [
        ("extract",),
        ("score",),
        ("select",),
        ("evaluate",),
        ("extract", "select"),
        ("score", "evaluate"),
    ],
    ids="+".join,
)
def test_every_subset_of_runs_makes_a_report(
    kinds: tuple[str, ...], results: dict[str, xr.Dataset | xr.DataTree]
) -> None:
    page = report.build([results[k] for k in kinds])
    parsed(report.to_html(page))
    text, files = report.to_markdown(page)
    assert text.startswith("# Refusal in tiny-refuser")
    assert set(re.findall(r"\(figures/([^)]+)\)", text)) == set(files)
    titles = {s.title for s in page.sections}
    assert ("By category" in titles) == ("evaluate" in kinds)
    assert ("Discovery" in titles) == ("extract" in kinds)
    assert ("The selected direction" in titles) == bool({"score", "select"} & set(kinds))


def test_an_evaluation_without_controls_texts_scores_or_clusters_makes_a_report() -> None:
    root = synthetic.evaluation().to_dataset().sel(intervention=["baseline", "ablation"])
    root = root.drop_vars(["text", "refusal_score", "family"])
    whole = synthetic.evaluation()["rates"].to_dataset().sel(intervention=["baseline", "ablation"])
    page = report.build([xr.DataTree.from_dict({"/": root, "/rates": whole})])
    titles = {s.title for s in page.sections}
    assert "Controls" not in titles
    assert "Refusal scores" not in titles
    assert "prompt test000000" in report.to_html(page)


def test_runs_of_two_models_stay_apart() -> None:
    runs = []
    for model in ("one", "two"):
        for data in (synthetic.score_table(), synthetic.evaluation()):
            data.attrs["model"] = model
            runs.append(data)
    page = report.build(runs)
    assert page.title == "Refusal in one and two"
    titles = [s.title for s in page.sections]
    assert {"By category — one", "By category — two"} <= set(titles)
    html = report.to_html(page)
    ids = [attrs["id"] for _, attrs in parsed(html).tags if "id" in attrs]
    assert len(ids) == len(set(ids))


def _attacked() -> xr.DataTree:
    tree = synthetic.evaluation(per_style=4)
    root = tree.to_dataset()
    root["completion"][:] = ATTACK
    root["text"][:] = ATTACK
    names = {synthetic.CATEGORIES[0]: ATTACK}
    category = np.array([names.get(c, c) for c in root["category"].values], dtype=object)
    rates = tree["rates"].to_dataset()
    rates = rates.assign_coords(category=[names.get(c, c) for c in rates["category"].values])
    root = root.assign_coords(category=("prompt", category)).assign_attrs(
        model=ATTACK, command=ATTACK, options={"prompts": ATTACK}, versions={ATTACK: ATTACK}
    )
    return xr.DataTree.from_dict({"/": root, "/rates": rates})


def test_text_from_strangers_is_shown_and_never_acts_in_html() -> None:
    checker = parsed(report.to_html(report.build([_attacked()])))
    tags = {tag for tag, _ in checker.tags}
    assert not tags & {"script", "img", "b"}
    assert not [a for _, attrs in checker.tags for a in attrs if a.startswith("on")]
    assert "".join(checker.text).count(ATTACK) > 30


def test_text_from_strangers_never_acts_in_markdown() -> None:
    text, files = report.to_markdown(report.build([_attacked()]))
    outside_code = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", text)
    outside_code = re.sub(r'(?m)^<a id="[a-z0-9-]+"></a>$', "", outside_code)
    outside_code = re.sub(r"(?m)^>", "", outside_code)  # our own quotes
    assert not re.search(r"(?<!\\)[<>]", outside_code)
    assert not re.search(r"(?<!\\)`", outside_code)
    assert not re.search(r"(?<!\\)\]\(http", outside_code)
    assert "http://" not in outside_code
    for line in outside_code.splitlines():
        if line.startswith("| ") and "---" not in line:
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 5, 6, 7, 8)
    assert all("<script" not in svg for svg in files.values())


def test_control_characters_do_not_reach_the_files() -> None:
    tree = synthetic.evaluation(per_style=4)
    tree["completion"][:] = "a\x00b\x1b[31mc\x08"
    page = report.build([tree])
    text, files = report.to_markdown(page)
    for written in (report.to_html(page), text, *files.values()):
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", written)


def test_the_same_runs_give_the_same_bytes() -> None:
    def made() -> tuple[str, tuple[str, dict[str, str]]]:
        page = report.build([synthetic.score_table(), synthetic.evaluation(per_style=4)])
        return report.to_html(page), report.to_markdown(page)

    assert made() == made()


def test_building_changes_nothing_in_the_results() -> None:
    tree = synthetic.evaluation(per_style=4)
    before = tree.copy(deep=True)
    report.build([tree])
    xr.testing.assert_identical(tree, before)


def test_samples_are_balanced_over_style_and_spread_over_categories() -> None:
    root = synthetic.evaluation().to_dataset()
    rows = draw(root, PER_STYLE)
    styles = root["style"].values[rows].tolist()
    assert {s: styles.count(s) for s in styles} == dict.fromkeys(synthetic.HARM, PER_STYLE)
    assert len(set(root["category"].values[rows])) == len(rows)


def test_verdicts_follow_refused_and_coherent(page: report.Page) -> None:
    root = synthetic.evaluation().to_dataset()
    (section,) = (s for s in page.sections if s.title == "Sample completions")
    samples = next(b.samples for b in section.blocks if isinstance(b, Samples))
    rows = {str(t): i for i, t in enumerate(root["text"].values)}
    seen = set()
    for sample in samples:
        at = root.isel(prompt=rows[sample.prompt])
        for answer in sample.answers:
            here = at.sel(intervention=answer.condition.replace(" ", "_"))
            wanted = "refused" if here["refused"] else "complied" if here["coherent"] else "broken"
            assert answer.verdict == wanted
            seen.add(wanted)
    assert {"refused", "complied"} <= seen


def test_failures_are_counted_and_shown(page: report.Page) -> None:
    root = synthetic.evaluation().to_dataset()
    wrong = 0
    for condition, style, refusal in (
        ("baseline", "toxic", True), ("baseline", "safe", False), ("baseline", "hard", False),
        ("ablation", "toxic", False), ("addition", "safe", True),
    ):  # fmt: skip
        here = root.sel(intervention=condition)
        for i in np.flatnonzero(here["style"].values == style):
            as_wanted = bool(here["refused"][i]) == refusal and bool(here["coherent"][i])
            wrong += not as_wanted
    (section,) = (s for s in page.sections if s.title == "Where it failed")
    assert section.blocks[0].text.startswith(f"{wrong} completions went against")  # type: ignore[union-attr]


def test_overlapping_prompts_are_called_out() -> None:
    score = synthetic.score_table(per_style=10)
    score = score.assign_coords(family=("prompt", synthetic.prompt_coords(10)["family"][1]))
    page = report.build([score, synthetic.evaluation()])
    (table,) = _tables(page, "What was run")
    assert table.caption.startswith("Beware: selection and test share 90 families")
    apart = report.build([synthetic.score_table(), synthetic.evaluation()])
    assert _tables(apart, "What was run")[0].caption.startswith("Checked here: selection and test")


def test_provenance_names_runs_inputs_and_versions(html: str) -> None:
    for wanted in ("direction-score-tiny-refuser-01234567", "9f2c" * 16, "torch 2.13.0"):
        assert wanted in html


def test_wrong_results_are_refused_with_what_they_hold() -> None:
    with pytest.raises(RequestError, match=r"no kind that a report can show \(it holds banana\)"):
        report.build([xr.Dataset({"banana": 1})])
    with pytest.raises(RequestError, match="at least one run"):
        report.build([])
    with pytest.raises(RequestError, match="no group 'rates'"):
        report.build([synthetic.evaluation().to_dataset()])


def test_the_runs_that_a_report_asks_for_are_those_it_can_show(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = {"broken-thing": "nowhere:thing"}
    monkeypatch.setattr("refusal_nn._analyses.others", lambda: others)
    with pytest.raises(RequestError, match=r"give runs of direction-extract, .*compare\.$"):
        report.build([xr.Dataset({"banana": 1})])


def test_files_are_written_whole_and_earlier_ones_replaced(tmp_path: Path) -> None:
    run = synthetic.candidate_table()
    target = tmp_path / "new" / "page.html"
    target.parent.mkdir()
    target.write_text("old")
    assert report.write([run], target) == target
    assert target.read_text(encoding="utf-8") == report.to_html(report.build([run]))
    page = report.write([run], tmp_path / "page.md")
    drawn = {p.name for p in (tmp_path / "page-figures").iterdir()}
    assert drawn == {"s1-discovery-scores.svg", "s1-direction-norms.svg"}
    for name in drawn:
        assert f"(page-figures/{name})" in page.read_text(encoding="utf-8")
    assert [p.name for p in target.parent.iterdir()] == ["page.html"]


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    run = synthetic.candidate_table()
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot be written .* choose another file"):
        report.write([run], tmp_path / "file" / "page.html")
    with pytest.raises(RequestError, match=r"end it in \.html or \.md"):
        report.write([run], tmp_path / "page.pdf")
