"""Whatever the texts of a run are, its page is inert, and a run that is no run is one sentence."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from refusal_nn import report
from refusal_nn.errors import RequestError
from refusal_nn.report._sources import read
from tests.report import hostile, synthetic
from tests.report.test_report import parsed
from tests.report.test_sources import _save

URL = "http://loads.invalid"
FORBIDDEN = {
    "script", "link", "iframe", "frame", "object", "embed", "base", "form", "input", "button", "img",
    "video", "audio", "source", "track", "foreignobject", "animate", "set", "template", "noscript",
}  # fmt: skip
ADDRESSES = {
    "src",
    "srcset",
    "href",
    "xlink:href",
    "action",
    "data",
    "poster",
    "background",
    "ping",
}


def inert(html: str) -> None:
    """No element or attribute of a document could run or fetch anything, and its policy says so."""
    checker = parsed(html)
    names = [tag.lower() for tag, _ in checker.tags]
    assert not set(names) & FORBIDDEN
    assert [names.count(name) for name in ("html", "title", "style", "main")] == [1, 1, 1, 1]
    metas = [attrs for tag, attrs in checker.tags if tag == "meta"]
    (policy,) = (m["content"] for m in metas if "http-equiv" in m)
    assert policy == (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    for tag, attrs in checker.tags:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in ADDRESSES:
                assert (value or "").startswith(("#", "data:image/png;base64,")), (tag, value)
            if name in ("style", "clip-path", "fill", "filter", "mask"):
                assert not re.search(r"url\((?!#)", value or ""), (tag, value)
                assert URL not in (value or "")


@pytest.mark.parametrize("kind", hostile.runs())
def test_a_page_with_payloads_in_every_text_is_inert(kind: str) -> None:
    text = hostile.payload(URL)
    page = report.build([hostile.attacked(hostile.runs()[kind](), text)], title=text)
    html = report.to_html(page)
    inert(html)
    assert html.count(hostile.MARK) > 5
    markdown, figures = report.to_markdown(page)
    _inert_markdown(markdown)
    for svg in figures.values():
        _inert_figure(svg)


@pytest.mark.parametrize("text", hostile.SHORT)
def test_labels_of_figures_are_text(text: str) -> None:
    runs = [
        hostile.attacked(hostile.runs()[kind](), text)
        for kind in ("direction-evaluate", "circuit-evaluate")
    ]
    page = report.build(runs, title=text)
    inert(report.to_html(page))
    _, figures = report.to_markdown(page)
    shown = ["".join(ET.fromstring(svg).itertext()) for svg in figures.values()]
    assert sum(text in one or text.replace("_", " ") in one for one in shown) >= 2
    for svg in figures.values():
        _inert_figure(svg)


def test_a_label_of_any_length_leaves_room_for_the_data() -> None:
    run = hostile.attacked(synthetic.evaluation(per_style=4), "x" * 10_000)
    _, figures = report.to_markdown(report.build([run]))  # warnings are errors
    assert all(len(svg) < 200_000 for svg in figures.values())
    assert "…" in figures["s1-category-rates.svg"]


def test_no_character_turns_our_own_words_round() -> None:
    run = synthetic.evaluation(per_style=4)
    run.attrs["model"] = "a\u202eb\u2066c\x9b2J\ud800"
    for written in (
        report.to_html(report.build([run])),
        report.to_markdown(report.build([run]))[0],
    ):
        assert "a�b�c�2J�" in written
        written.encode()


def test_a_method_of_others_is_a_name_and_no_template() -> None:
    run = hostile.runs()["attribute-edges"]()
    run.attrs["method"] = "{steps.__class__} {0}"
    assert "by {steps.__class__} {0}." in report.to_html(report.build([run]))


BROKEN: list[Any] = [None, "text", 10**9, [{"run": 1}]]
FIELDS = (
    "inputs", "options", "versions", "n_layers", "layer", "n_kept", "n_total", "n_heads",
    "dropped_pairs", "refusal_token_texts", "confidence", "wall_time", "requested", "n_pairs",
)  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["direction-score", "patch-heads", "attribute-edges", "circuit-discover"]
)
def test_attrs_of_any_type_make_a_page_or_one_sentence(kind: str) -> None:
    whole = hostile.runs()[kind]()
    made = 0
    for value in BROKEN:
        for name in FIELDS:
            if name not in whole.attrs and name not in ("inputs", "options", "versions"):
                continue
            run = whole.copy()
            run.attrs = {**whole.attrs, name: value}
            said = outcome(run)
            made += not said
            assert "\n" not in said
            assert said.endswith("." if said else "")
    assert made


def outcome(run: Any) -> str:
    """What is said of a run that no page can be made of; empty where one is made."""
    try:
        report.build([run])
    except RequestError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["direction-score", "attribute-edges", "circuit-discover"])
def test_a_run_without_its_variables_makes_a_page_or_one_sentence(kind: str) -> None:
    whole = hostile.runs()[kind]()
    tree = whole if isinstance(whole, xr.DataTree) else xr.DataTree(whole)
    for name in [*map(str, tree.to_dataset().variables)]:
        run = tree.copy()
        run.dataset = run.to_dataset().drop_vars(name)
        assert "\n" not in outcome(run)


def test_a_run_names_its_neighbours_and_no_folder_elsewhere(tmp_path: Path) -> None:
    stores, other = tmp_path / "stores", tmp_path / "private"
    stores.mkdir()
    other.mkdir()
    hidden = _save(synthetic.candidate_table(), other / "secret")
    run = synthetic.score_table()
    made = _save(run, stores / "score", inputs=[{**hidden, "run": "../private/secret"}])
    assert made
    assert [source.name for source in read(["score"], stores=stores)] == ["score"]


def _inert_markdown(text: str) -> None:
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", text)
    outside = re.sub(r'(?m)^<a id="[a-z0-9-]+"></a>$', "", outside)
    outside = re.sub(r"(?m)^>", "", outside)
    assert not re.search(r"(?<!\\)[<>`]", outside)
    assert not re.search(r"(?<!\\)\]\((?!#|figures/)", outside)
    assert "://" not in outside.replace("\\://", "")
    assert not re.search(r"(?<!\\)@", outside)


def _inert_figure(svg: str) -> None:
    names = set()
    for element in ET.fromstring(svg).iter():
        names.add(element.tag.rpartition("}")[2])
        for name, value in element.attrib.items():
            local = name.rpartition("}")[2]
            assert not local.startswith("on"), name
            if local in ("href", "src"):
                assert value.startswith(("#", "data:image/png;base64,")), value
            assert not re.search(r"url\((?!#)", value), value
    assert names <= {
        "svg",
        "g",
        "defs",
        "path",
        "use",
        "text",
        "tspan",
        "image",
        "clipPath",
        "rect",
        "pattern",
    }


def test_every_json_text_of_a_run_is_taken_as_it_is() -> None:
    run = synthetic.score_table()
    run.attrs["options"] = json.loads('{"prompts": ["\\ud800", 1, null, {"a": 2}]}')
    report.to_html(report.build([run])).encode()
