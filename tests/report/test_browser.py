"""In a real browser with scripts allowed, a page of hostile runs runs nothing and asks for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from refusal_nn import report
from tests.loopback import Loopback
from tests.report import browser as driven
from tests.report import hostile

BROWSER = driven.find()

pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="no Chromium here; install one, or name it in REFUSAL_NN_TEST_BROWSER",
)


@pytest.fixture(scope="module")
def listener() -> Iterator[Loopback]:
    with Loopback() as made:
        yield made


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[driven.Browser]:
    assert BROWSER is not None
    with driven.started(BROWSER, tmp_path_factory.mktemp("browser")) as made:
        yield made


RAN = "window.ran === undefined ? 'nothing' : 'a payload'"
SCRIPTS = "document.scripts.length"
SHOWN = f"document.documentElement.textContent.split('{hostile.MARK}').length - 1"


@dataclass
class Written:
    """A report of hostile runs, in both formats."""

    name: str
    html: str
    markdown: str
    figures: dict[str, str]


@pytest.fixture(scope="module")
def pages(listener: Loopback) -> list[Written]:
    """The page of every kind of run, with payloads in every text."""
    long = hostile.payload(listener.url)
    built = [(kind, [kind], long) for kind in hostile.runs()]
    drawn = [
        "direction-evaluate",
        "circuit-evaluate",
    ]  # their figures are labelled by what they hold
    built += [(f"labels{i}", drawn, text) for i, text in enumerate(hostile.SHORT)]
    made = []
    for name, kinds, text in built:
        runs = [hostile.attacked(hostile.runs()[kind](), text) for kind in kinds]
        page = report.build(runs, title=text)
        made.append(Written(name, report.to_html(page), *report.to_markdown(page)))
    return made


def test_the_browser_would_tell(
    chromium: driven.Browser, listener: Loopback, tmp_path: Path
) -> None:
    page = tmp_path / "acts.html"
    page.write_text(
        f"<script>window.ran=1; alert(1); fetch('{listener.url}/js')</script>"
        f"<img src='{listener.url}/img'><b onmouseover='undefined.x'>b</b>"
    )
    seen = chromium.open(page, RAN, SCRIPTS)
    assert seen.values == {RAN: "a payload", SCRIPTS: 1}
    assert len(seen.ran) >= 2
    assert {u.rpartition("/")[2] for u in seen.requests} == {"js", "img"}
    assert sorted(asked.path for asked in listener.seen) == ["/img", "/js"]
    listener.seen.clear()


@pytest.mark.parametrize("policy", [True, False], ids=["as written", "without its policy"])
def test_html_of_hostile_runs_is_inert(
    chromium: driven.Browser,
    listener: Loopback,
    pages: list[Written],
    tmp_path: Path,
    policy: bool,
) -> None:
    file = tmp_path / "page.html"
    for page in pages:
        text = page.html
        if not policy:  # escaping alone must do
            text = text.replace('http-equiv="Content-Security-Policy"', "")
            assert text != page.html
        file.write_text(text, encoding="utf-8")
        seen = chromium.open(file, RAN, SCRIPTS, SHOWN)
        assert (seen.requests, seen.ran, seen.said) == ([], [], []), page.name
        assert seen.values[RAN] == "nothing"
        assert seen.values[SCRIPTS] == 0
        assert seen.values[SHOWN] > 5 or page.name.startswith("labels")
    assert listener.seen == []


def test_markdown_of_hostile_runs_is_inert_with_its_figures(
    chromium: driven.Browser, listener: Loopback, pages: list[Written], tmp_path: Path
) -> None:
    # as a reader that lets raw HTML through
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for page in pages:
        folder = tmp_path / page.name
        (folder / "figures").mkdir(parents=True)
        for figure, svg in page.figures.items():
            (folder / "figures" / figure).write_text(svg, encoding="utf-8")
        file, shown = folder / "page.html", reader.render(page.markdown)
        file.write_text(f"<!DOCTYPE html><meta charset=utf-8>{shown}", encoding="utf-8")
        seen = chromium.open(file, RAN, SCRIPTS)
        own = {(folder / "figures" / figure).as_uri() for figure in page.figures}
        assert set(seen.requests) == own, page.name
        assert (seen.ran, seen.said) == ([], []), page.name
        assert seen.values == {RAN: "nothing", SCRIPTS: 0}
        for figure in page.figures:  # opened alone, a figure could run scripts of its own
            alone = chromium.open(folder / "figures" / figure, RAN)
            assert (alone.requests, alone.ran, alone.said) == ([], [], []), (page.name, figure)
            assert alone.values[RAN] == "nothing"
    assert listener.seen == []
