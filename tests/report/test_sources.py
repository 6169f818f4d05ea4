"""Runs on disk become the same report as the results they were saved from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from refusal_nn import report, store
from refusal_nn.errors import RequestError, VerificationError
from refusal_nn.report._page import Page, Table
from tests.report import synthetic

REQUIRED = {
    "tokenizer_hash": "t" * 8,
    "template_hash": "c" * 8,
    "interventions": [],
    "versions": {"torch": "2.13.0"},
}


def _save(data: xr.Dataset | xr.DataTree, path: Path, **more: Any) -> dict[str, str]:
    attrs = {k: v for k, v in data.attrs.items() if k not in ("inputs", "fingerprint", "wall_time")}
    data = data.copy()
    data.attrs = attrs
    keys = ("analysis", "model", "revision", "dtype", "device", "backend", "prompts_hash", "seed")
    given = {k: attrs[k] for k in (*keys, "command")}
    path = store.save(data, path, {**REQUIRED, **given, **more})
    return {"run": store.run_name(path), "hash": store.run_hash(path)}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four runs of a study, each naming the one before."""
    folder = tmp_path_factory.mktemp("stores")
    made = _save(synthetic.candidate_table(), folder / "extract")
    made = _save(synthetic.score_table(), folder / "score", inputs=[made])
    made = _save(synthetic.selection_table(), folder / "select", inputs=[made])
    _save(synthetic.evaluation(), folder / "evaluate", inputs=[made])
    return folder


def _rows(page: Page) -> list[Any]:
    return [
        b.rows
        for s in page.sections
        for b in s.blocks
        if isinstance(b, Table) and s.title not in ("Provenance", "What was run")
    ]


def test_a_stored_run_gives_the_numbers_of_the_result_it_was_saved_from(stores: Path) -> None:
    from_disk = report.build(report.read(["evaluate"], stores=stores, follow=False))
    assert _rows(from_disk) == _rows(report.build([synthetic.evaluation()]))


def test_the_runs_a_run_was_made_from_are_followed(stores: Path) -> None:
    sources = report.read(["evaluate"], stores=stores)
    assert [s.name for s in sources] == ["extract", "score", "select", "evaluate"]
    titles = [s.title for s in report.build(sources).sections]
    assert titles.count("By category") == titles.count("Discovery") == 1
    assert [s.name for s in report.read(["score"], stores=stores, follow=False)] == ["score"]


def test_a_run_may_be_named_by_path_and_twice(stores: Path) -> None:
    names = [str(stores / "score.zarr"), stores / "score", stores / "extract"]
    assert [s.name for s in report.read(names)] == ["extract", "score"]


def test_an_input_that_has_changed_since_is_left_out(stores: Path, tmp_path: Path) -> None:
    other = synthetic.score_table(seed=1)
    _save(other, tmp_path / "score")
    made = [{"run": "score", "hash": store.run_hash(stores / "score.zarr")}]
    _save(synthetic.selection_table(), tmp_path / "select", inputs=made)
    assert [s.name for s in report.read(["select"], stores=tmp_path)] == ["select"]


def test_the_page_names_every_run_with_the_hash_of_its_manifest(stores: Path) -> None:
    html = report.to_html(report.build(report.read(["evaluate"], stores=stores)))
    for name in ("extract", "score", "select", "evaluate"):
        assert store.run_hash(stores / f"{name}.zarr") in html


def test_paths_can_be_written_straight_to_a_page(stores: Path, tmp_path: Path) -> None:
    page = report.write_html([stores / "score.zarr"], tmp_path / "page.html")
    assert "Candidate directions" in page.read_text(encoding="utf-8")


def test_no_machine_path_reaches_the_page(stores: Path) -> None:
    html = report.to_html(report.build(report.read(["evaluate"], stores=stores)))
    assert str(stores) not in html


def test_an_unknown_run_is_refused(stores: Path) -> None:
    with pytest.raises(RequestError, match="there is no run 'nope'"):
        report.read(["nope"], stores=stores)


def test_a_partial_run_is_refused_with_how_to_finish_it(tmp_path: Path) -> None:
    folder = tmp_path / "half.zarr.partial"
    folder.mkdir()
    (folder / "zarr.json").write_text(
        json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})
    )
    with pytest.raises(RequestError, match="partial; finish it with `refusal-nn runs resume half`"):
        report.read(["half"], stores=tmp_path)


def test_a_damaged_run_is_refused_with_how_to_see_what_is_wrong(
    stores: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "score.zarr"
    shutil.copytree(stores / "score.zarr", copy)
    chunk = next(p for p in (copy / "bypass").rglob("*") if p.is_file() and p.name != "zarr.json")
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 0xFF
    chunk.write_bytes(bytes(data))
    with pytest.raises(
        VerificationError, match=r"run 'score': chunk .* of variable 'bypass.* does not"
    ):
        report.read(["score"], stores=tmp_path)


def test_a_run_with_a_chunk_missing_is_refused(stores: Path, tmp_path: Path) -> None:
    """A missing chunk reads as NaN, which a page would show as "not measured"."""
    copy = tmp_path / "score.zarr"
    shutil.copytree(stores / "score.zarr", copy)
    next(p for p in (copy / "bypass" / "c").rglob("*") if p.is_file()).unlink()
    with pytest.raises(VerificationError, match=r"variable 'bypass' .* is missing; restore it"):
        report.read(["score"], stores=tmp_path)
