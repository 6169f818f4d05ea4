"""The registry refuses what was never declared and documents what was."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import refusal_nn
from refusal_nn._analyses import declare_variables
from refusal_nn.errors import StoreError
from refusal_nn.store import REGISTRY, Spec, annotate, lookup, register
from tests.patience import limit
from tests.store.synthetic import prompt_coords, prompt_template


def table() -> xr.Dataset:
    return xr.Dataset(
        {"bypass": (("position", "layer"), np.zeros((2, 3)))},
        coords={"position": [-2, -1], "layer": [0, 1, 2]},
    )


def test_annotate_documents_every_variable_and_label_and_leaves_the_input_alone():
    given_ds = table()
    out = annotate(given_ds)
    assert out["bypass"].attrs["units"] == "nats"
    assert out["bypass"].attrs["long_name"].startswith("Mean refusal score of harmful prompts")
    assert "Arditi" in out["bypass"].attrs["source"]
    assert out["layer"].attrs["units"] == "index"
    assert not given_ds["bypass"].attrs
    assert not given_ds["layer"].attrs


def test_annotate_says_which_site_a_layer_indexes():
    assert annotate(table().assign_attrs(site="resid_pre"))["layer"].attrs["site"] == "resid_pre"
    assert "site" not in annotate(table())["layer"].attrs


def test_annotate_keeps_attrs_that_the_declaration_does_not_set():
    ds = table()
    ds["bypass"].attrs = {"note": "kept", "units": "wrong"}
    assert annotate(ds)["bypass"].attrs["note"] == "kept"
    assert annotate(ds)["bypass"].attrs["units"] == "nats"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda ds: ds.rename(bypass="bypasss"), "'bypasss' is not declared"),
        (lambda ds: ds.transpose("layer", "position"), "has dims .layer, position."),
        (lambda ds: ds.rename(layer="head"), "has dims .position, head."),
        (lambda ds: ds.astype(int), "holds int64 but is declared as float"),
        (lambda ds: ds.drop_vars("layer"), "dim 'layer' lacks its label layer"),
        (lambda ds: ds.assign_coords(colour=("layer", list("abc"))), "'colour' is not declared"),
        (lambda ds: ds.assign_coords(bypass=0.0), "is a coordinate here but is declared"),
        (lambda ds: ds.assign(kept=("prompt", [True])), "lacks its labels prompt_id, category"),
        (lambda ds: ds.assign(bypass=ds.bypass.astype(complex)), "complex128, which zarr cannot"),
    ],
)
def test_annotate_refuses(spoil, message):
    with pytest.raises(StoreError, match=message):
        annotate(spoil(table()))


def test_a_corpus_needs_no_harm_and_no_style():
    ds = xr.Dataset({"text": ("prompt", np.array(["a", "b"], dtype=object))})
    ds = ds.assign_coords(prompt_id=("prompt", np.array(["0" * 16, "1" * 16], dtype=object)))
    assert annotate(ds)["text"].attrs["long_name"]
    with pytest.raises(StoreError, match="lacks its labels category, harm, style"):
        annotate(ds.assign(kept=("prompt", [True, False])))


def test_a_missing_string_is_refused_because_zarr_would_store_an_empty_one():
    ds = prompt_template(2)
    # xarray turns the None into nan
    ds["completion"] = ("prompt", np.array(["x", None], dtype=object))
    with pytest.raises(StoreError, match=r"'completion' holds nan .* boolean mask"):
        annotate(ds)


def test_a_label_along_another_dim_does_not_label_this_one():
    ds = xr.Dataset({"category_count": ("category", np.array([1, 2]))}, coords=prompt_coords(2))
    register(Spec("category_count", ("category",), "int", "count", "Prompts of a category"))
    with pytest.raises(StoreError, match="dim 'category' lacks its label category"):
        annotate(ds)


@given(
    st.lists(st.sampled_from(("draw", "position", "layer", "d_model", "run", "head")), unique=True)
)
def test_a_spec_accepts_exactly_the_ordered_dims_it_declares(dims):
    spec = Spec(
        "direction",
        ("draw", "position", "layer", "d_model"),
        "float",
        "",
        "x",
        optional=("draw", "position", "layer"),
    )
    own = [d for d in dims if d != "run"]  # any variable may lie along runs
    right = [d for d in spec.dims if d in own]
    assert spec.accepts(dims) == (own == right and "d_model" in own)


def test_interval_ends_and_counts_follow_from_the_variable_they_belong_to():
    low, n = lookup("refusal_rate_low"), lookup("refusal_rate_n")
    assert low is not None
    assert (low.unit, low.dtype) == ("0 to 1", "float")
    assert n is not None
    assert (n.unit, n.dtype) == ("count", "int")
    assert lookup("unheard_of_low") is None
    assert lookup("layer_low") is None


def test_declaring_twice_is_harmless_and_differently_is_an_error():
    register(lookup("kl"))
    with pytest.raises(StoreError, match="'kl' is already declared") as raised:
        register(replace(lookup("kl"), unit="bits"))
    assert lookup("kl").unit == "nats"
    assert "by refusal_nn.directions._variables as" in str(raised.value)
    assert f"and {__name__} declares it as" in str(raised.value)


@pytest.mark.parametrize(
    "last",
    [
        "import refusal_nn.directions",
        "refusal_nn.store.lookup('refusal_rate')",
        "refusal_nn._analyses.function_at('refusal_nn.directions._extract:extract')",
    ],
)
def test_a_clash_with_a_variable_of_ours_names_both_whoever_came_first(tmp_path, last):
    (tmp_path / "theirs.py").write_text(
        "from refusal_nn.store import Spec, register\n"
        "register(Spec('kl', ('layer',), 'float', 'bits', 'Another one.'))\n"
    )
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import theirs
import refusal_nn.store, refusal_nn._analyses
from refusal_nn.errors import StoreError
try:
    {last}
except StoreError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=limit(60),
        cwd=Path(refusal_nn.__file__).parents[1],
    )
    assert "'kl' is already declared by theirs as Spec(" in told.stdout
    assert "and refusal_nn.directions._variables declares it as Spec(" in told.stdout


@pytest.mark.parametrize(
    ("field", "value"), [("dtype", "float32"), ("summary", ""), ("optional", ("head",))]
)
def test_a_spec_validates_itself(field, value):
    with pytest.raises(StoreError, match=r"is declared|declares optional"):
        replace(lookup("kl"), **{field: value})


def test_every_declared_variable_has_a_unit_or_is_a_label_text_or_flag():
    for _ in declare_variables():
        pass
    assert "edge_score" in REGISTRY
    for spec in REGISTRY.values():
        assert spec.unit or spec.dtype in ("string", "bool"), spec.name
        assert not spec.summary.startswith(" "), spec.name
