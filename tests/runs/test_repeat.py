"""A recorded call made again, and what a record that a stranger wrote cannot bring about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import refusal_nn as rn
from refusal_nn._signature import REQUIRED, Parameter
from refusal_nn.attribution import Metric
from refusal_nn.errors import PromptError, RequestError, StoreError
from refusal_nn.runs import call_of, load_again, recorded_model, repeat
from refusal_nn.runs._call import encoded
from refusal_nn.runs._repeat import _device_of
from refusal_nn.runs._values import fits


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few runs that go on from each other."""
    folder = tmp_path_factory.mktemp("stores")
    model, prompts = rn.load_model("tiny-refuser"), rn.load_prompts("tiny-bench")
    few = prompts.train[::24]
    found = rn.record(rn.directions.extract, model, few, screen=False, keep=kept(folder, "first"))
    val = prompts.val[::12]
    options: dict[str, Any] = {"refusal_tokens": [40], "screen": False}
    rn.record(rn.directions.score, model, found, val, **options, keep=kept(folder, "second"))
    return folder


def kept(folder: Path, name: str) -> rn.Keeping:
    return rn.Keeping(folder, name)


def again(stores: Path, name: str, new: str, folder: Path | None = None) -> rn.Run:
    call = call_of(stores / name)
    return repeat(call, kept(folder or stores, new), load_again(call))


@pytest.mark.parametrize("name", ["first", "second"])
def test_a_call_made_again_gives_the_same_arrays(stores: Path, name: str) -> None:
    new = again(stores, name, f"{name}-again")
    old = xr.open_datatree(stores / f"{name}.zarr", engine="zarr")
    assert not new.reused
    assert old.equals(new.tree)
    assert new.attrs["fingerprint"] == old.attrs["fingerprint"]


def test_a_record_says_no_path_and_nothing_that_was_typed(stores: Path) -> None:
    document = json.loads((stores / "second.zarr" / "call.json").read_text())
    assert set(document) == {
        *("format", "analysis", "arguments", "model", "made_from", "unrecorded"),
    }
    assert document["arguments"]["candidates"]["run"]["run"] == "first"
    assert document["arguments"]["refusal_tokens"] == {"value": [40]}
    assert set(document["model"]) == {
        *("name", "kind", "revision", "dtype", "device", "backend", "chat_template"),
        "attn_implementation",
    }
    assert str(stores) not in json.dumps(document)


def test_an_input_is_found_by_its_hash(stores: Path, tmp_path: Path) -> None:
    call = call_of(stores / "second")
    model = load_again(call)
    with pytest.raises(RequestError, match=r"goes on from run 'first', which is not in .*--input"):
        repeat(call, kept(tmp_path, "third"), model)
    shutil.copytree(stores / "first.zarr", tmp_path / "beside" / "renamed.zarr")
    beside = repeat(call, kept(tmp_path, "by-hash"), model, folders=[tmp_path / "beside"])
    assert beside.attrs["inputs"][0]["run"] in ("first", "renamed")
    given = [stores / "first.zarr"]
    assert (
        repeat(call, kept(tmp_path, "third"), model, given).attrs["analysis"] == "direction-score"
    )


def changed(stores: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A partial run whose record was changed."""
    partial = folder / "evil.zarr.partial"
    partial.mkdir()
    (partial / "zarr.json").write_bytes((stores / "second.zarr" / "zarr.json").read_bytes())
    document = json.loads((stores / "second.zarr" / "call.json").read_text())
    change(document)
    (partial / "call.json").write_text(json.dumps(document))
    return partial


def to(**parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document.update(parts)


def argument(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["arguments"].update({name: value})


def of_model(**parts: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["model"].update(parts)


HASH = "0" * 64
NOT_READ = {
    "another format": to(format=2),
    "no format": lambda document: document.pop("format"),
    "an analysis that is none": to(analysis="runs-rm"),
    "a module": to(analysis="os:system"),
    "no name": to(analysis=["direction-score"]),
    "a path for an input": to(made_from=[{"run": "../first", "hash": HASH}]),
    "an input with more": to(made_from=[{"run": "first", "hash": HASH, "path": "/"}]),
    "no inputs": to(made_from={"run": "first"}),
    "remote code": of_model(trust_remote_code=True),
    "a host": of_model(host="http://127.0.0.1:1"),
    "no backend": of_model(backend="shell"),
    "another dtype": of_model(dtype="int8"),
    "a revision that is a path": of_model(revision="../x"),
    "a template": of_model(chat_template="{{ 7 * 7 }}"),
    "a name that is none": of_model(name=["tiny-refuser"]),
    "arguments in a list": to(arguments=[]),
}


@pytest.mark.parametrize("change", NOT_READ.values(), ids=NOT_READ)
def test_a_record_of_another_form_is_not_read(stores: Path, tmp_path: Path, change: Any) -> None:
    changed(stores, tmp_path, change)
    with pytest.raises(RequestError, match="run 'evil'"):
        call_of(tmp_path / "evil")


NOT_MADE = {
    "an unknown argument": argument("keep", {"value": "/tmp"}),
    "a recorder": argument("recorder", {"value": None}),
    "a model": argument("model", {"value": "tiny-refuser"}),
    "a text for a number": argument("kl_max", {"value": "1"}),
    "a number out of range": argument("layer_fraction", {"value": 1.5}),
    "a truth for a number": argument("batch_size", {"value": True}),
    "a part of a model": argument("batch_size", {"value": 0}),
    "two kinds": argument("kl_max", {"value": 1, "run": 2}),
    "no kind": argument("kl_max", 1.0),
    "an unknown kind": argument("kl_max", {"pickle": "gASV"}),
    "a kind of another argument": argument("kl_max", {"prompts": {"name": "x", "rows": []}}),
    "rows that are none": argument("prompts", {"prompts": {"name": "x", "rows": [["a"]]}}),
    "rows of numbers": argument("prompts", {"prompts": {"name": "x", "rows": [{"text": 1}]}}),
    "rows that lack labels": argument(
        "prompts", {"prompts": {"name": "x", "rows": [{"text": "a"}]}}
    ),
    "a path for a run": argument("candidates", {"run": {"run": "/etc", "hash": HASH}}),
    "another run's hash": argument("candidates", {"run": {"run": "first", "hash": HASH}}),
    "no run": argument("candidates", {"value": "first"}),
    "one argument too few": lambda document: document["arguments"].pop("prompts"),
}


@pytest.mark.parametrize("change", NOT_MADE.values(), ids=NOT_MADE)
def test_an_argument_that_is_not_one_is_refused_before_anything_is_written(
    stores: Path, tmp_path: Path, change: Any
) -> None:
    changed(stores, tmp_path, change)
    call = call_of(tmp_path / "evil")
    model = load_again(call)
    with pytest.raises(RequestError) as caught:
        repeat(call, kept(tmp_path, "new"), model, [stores / "first.zarr"])
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.zarr.partial"]


def test_a_run_never_says_where_a_folder_is(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    with pytest.raises(RequestError, match="a folder here is called so"):
        recorded_model("r", "org/name")
    for name in ("folder", "/etc", "../x", "a/b/c", ".", "~/x", "https://x/y", "-x/y"):
        with pytest.raises(RequestError, match="--model PATH"):
            recorded_model("r", name)
    with pytest.raises(RequestError, match="--model PATH"):
        recorded_model("r", "org/other", "folder")
    (tmp_path / "folder").mkdir()
    assert recorded_model("r", "folder", "folder") == "folder"
    assert recorded_model("r", "org/other") == "org/other"
    assert recorded_model("r", "tiny-refuser") == "tiny-refuser"


def test_whose_code_is_run_is_said_by_the_user_alone(stores: Path, tmp_path: Path) -> None:
    for name in ("org/name", "folder"):
        with pytest.raises(RequestError, match="name the model with --model"):
            recorded_model("r", name, trusted=True)
    changed(stores, tmp_path, of_model(name="org/name", kind="hub", revision="refs/pr/1"))
    call = call_of(tmp_path / "evil")
    with pytest.raises(RequestError, match="name the model with --model"):
        load_again(call, trust_remote_code=True)
    with pytest.raises(RequestError, match="name the revision with --revision"):
        load_again(call, "org/name", trust_remote_code=True)


def test_a_partial_run_goes_on_on_its_own_device_type(stores: Path, tmp_path: Path) -> None:
    changed(stores, tmp_path, of_model(device="cuda"))
    for asked in (None, "cpu"):
        with pytest.raises(RequestError, match="go on on a machine with cuda"):
            load_again(call_of(tmp_path / "evil"), device=asked)


@pytest.mark.parametrize(
    ("gpu", "here", "elsewhere"), [(False, "cpu", "cuda"), (True, "cuda", "cpu")]
)
def test_auto_is_the_device_there_is(
    stores: Path, tmp_path: Path, monkeypatch: Any, gpu: bool, here: str, elsewhere: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    changed(stores, tmp_path, of_model(device=here))
    call = call_of(tmp_path / "evil")
    assert _device_of(call, "auto") == "auto"
    with pytest.raises(RequestError, match=f"go on on a machine with {elsewhere}"):
        _device_of(replace(call, model={**(call.model or {}), "device": elsewhere}), "auto")


def test_the_attention_kernel_of_the_first_attempt_is_used_again(tmp_path: Path) -> None:
    model = rn.load_model("tiny-refuser", attn_implementation="eager")
    prompts = rn.load_prompts("tiny-bench").train[::24]
    found = rn.record(rn.directions.extract, model, prompts, screen=False, keep=kept(tmp_path, "e"))
    again = load_again(call_of(found.path))
    assert again is not None
    assert again.module.config._attn_implementation == "eager"


def test_another_model_is_not_taken_for_the_recorded_one(stores: Path, tmp_path: Path) -> None:
    changed(stores, tmp_path, of_model(name="planted-gate"))
    with pytest.raises(RequestError, match="differs"):
        load_again(call_of(tmp_path / "evil"))


def test_what_a_file_was_read_from_is_asked_for(stores: Path, tmp_path: Path) -> None:
    changed(stores, tmp_path, of_model(chat_template="file"))
    with pytest.raises(RequestError, match="--chat-template FILE"):
        load_again(call_of(tmp_path / "evil"))


def without_record(stores: Path, folder: Path, ending: str, command: str) -> Path:
    """A run of an earlier version, which recorded what was typed."""
    old = folder / f"old{ending}"
    shutil.copytree(stores / "second.zarr", old)
    (old / "call.json").unlink()
    node = json.loads((old / "zarr.json").read_text())
    node["attributes"]["command"] = command
    (old / "zarr.json").write_text(json.dumps(node))
    if ending == ".zarr.partial":
        (old / "manifest.json").unlink()
    return old


@pytest.mark.parametrize(
    "command",
    [
        *("refusal-nn direction score first --prompts x", "", "'"),
        *("curl https://evil.example direction score", "refusal-nn runs rm direction score"),
        "refusal-nn direction score first --prompts x --host=http://evil.example",
    ],
)
def test_a_run_without_a_record_says_with_what_to_begin_again(
    stores: Path, tmp_path: Path, command: str
) -> None:
    for ending in (".zarr", ".zarr.partial"):
        folder = without_record(stores, tmp_path, ending, command)
        argv = ["runs", "rm", "direction", "score", "--yes"] if "rm" in command else []
        (folder / "request.json").write_text(json.dumps({"argv": argv, "cwd": "/"}))
        with pytest.raises(
            RequestError, match=r"again with .*`refusal-nn direction score"
        ) as caught:
            call_of(folder)
        assert not any(word in str(caught.value) for word in ("runs rm", "curl", "evil"))


def test_a_step_of_an_old_demo_is_named(stores: Path, tmp_path: Path) -> None:
    without_record(stores, tmp_path, ".zarr", "refusal-nn --log-level info demo --stores stores")
    with pytest.raises(RequestError, match=r"four that `refusal-nn demo` made.* direction score`"):
        call_of(tmp_path / "old")


def test_what_no_record_holds_is_said(tmp_path: Path) -> None:
    model, prompts = rn.load_model("tiny-refuser"), rn.load_prompts("tiny-bench").test[::30]
    own = rn.interventions.FunctionIntervention(_same, site="resid_pre", layers=[3])
    run = rn.record(
        rn.evaluate, model, prompts, {"own": [own]}, max_new_tokens=6, keep=kept(tmp_path, "own")
    )
    with pytest.raises(RequestError, match="begun from Python with 'conditions'"):
        call_of(run.path)


def _same(x: Any) -> Any:
    return x


def test_interventions_and_metrics_are_recorded_by_value() -> None:
    # a number whose last byte gives base64 that begins with a slash, as a path does
    ablation = rn.DirectionalAblation(np.frombuffer(b"\xff\xff\xff\xff\xff\xff\xef\x3f" * 4, "<f8"))
    assert encoded({"a": [ablation], "b": []}) == {
        "each": {"a": {"interventions": [ablation.encode()]}, "b": {"value": []}}
    }
    metric = Metric.projection(np.arange(1.0, 5.0), layer=2)
    found = encoded(metric)
    assert found is not None
    back = Metric.from_attrs(json.loads(json.dumps(found["metric"])))
    np.testing.assert_array_equal(back.direction, metric.direction)
    assert encoded(np.arange(3)) is None
    assert encoded(float("nan")) is None
    rn.store.provenance.require_public(rn.interventions.to_json([ablation]))


def test_a_plain_value_fits_its_declared_type_choices_and_bounds() -> None:
    def takes(value: Any, annotation: str, default: Any = REQUIRED, **more: Any) -> bool:
        return fits(value, Parameter("x", annotation, default, **more))

    assert takes(3, "int")
    assert takes(3, "float")
    assert takes(None, "int | None", None)
    assert takes([1, "a"], "Sequence[int | str] | str | None")
    assert takes(["a"], "tuple[str, ...]")
    assert takes({"a": 1}, "Mapping[str, int]")
    assert takes("top", "str", choices=("top", "greedy"))
    assert takes(0.5, "float", bounds=("(", "0", "1", "]"))
    for value, annotation in (
        *((True, "int"), (1.0, "int"), ("1", "float"), (None, "int"), ([1.5], "Sequence[int]")),
        *(("ab", "Sequence[str]"), ({"a": "b"}, "Mapping[str, int]"), ([[1]], "Sequence[int]")),
        *((1, "Metric | None"), ({"a": 1}, "Anything"), (1, "")),
    ):
        assert not takes(value, annotation), (value, annotation)
    assert not takes("x", "str", choices=("top", "greedy"))
    for value in (0, 1.5, -1):
        assert not takes(value, "float", bounds=("(", "0", "1", "]"))


def test_rows_of_a_record_are_checked_as_a_file_is(stores: Path, tmp_path: Path) -> None:
    def twice(document: dict[str, Any]) -> None:
        rows = document["arguments"]["prompts"]["prompts"]["rows"]
        rows.append({**rows[0], "harm": "neither"})

    changed(stores, tmp_path, twice)
    call = call_of(tmp_path / "evil")
    with pytest.raises((PromptError, StoreError)):
        repeat(call, kept(tmp_path, "new"), load_again(call), [stores / "first.zarr"])
