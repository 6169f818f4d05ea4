"""The selection rule: every branch on hand-made tables, and against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refusal_nn.directions import admissible, select
from refusal_nn.errors import RequestError
from refusal_nn.store import annotate

NAN = float("nan")


def table(bypass, induce=1.0, kl=0.0, *, positions=None, layers=None, dtype=float, **attrs):
    """A score table over (position, layer); a number fills the whole table."""
    bypass = np.array(bypass, dtype=dtype)
    n_positions, n_layers = bypass.shape
    full = {
        name: (
            ("position", "layer"),
            np.broadcast_to(np.array(v, dtype=dtype), bypass.shape).copy(),
        )
        for name, v in {"induce": induce, "kl": kl}.items()
    }
    return xr.Dataset(
        {"bypass": (("position", "layer"), bypass), **full},
        coords={
            "position": positions if positions is not None else np.arange(-n_positions, 0),
            "layer": layers if layers is not None else np.arange(n_layers),
        },
        attrs=attrs,
    )


def brute_force(scores, kl_max=0.1, induce_min=0.0, layer_fraction=0.8):
    """The published loops, over labels in ascending order, first of equals wins."""
    n_layers = scores.attrs.get("n_layers") or int(scores["layer"].max()) + 1
    values = {name: scores[name].transpose("position", "layer").values for name in scores}
    rows = sorted((int(label), i) for i, label in enumerate(scores["position"].values))
    columns = sorted((int(label), i) for i, label in enumerate(scores["layer"].values))
    best = None
    for position, row in rows:
        for layer, column in columns:
            b, i, k = (float(values[name][row, column]) for name in ("bypass", "induce", "kl"))
            if math.isnan(b) or math.isnan(i) or math.isnan(k):
                continue
            if layer >= int(n_layers * layer_fraction) or k > kl_max or i < induce_min:
                continue
            if best is None or b < best[0]:
                best = (b, position, layer)
    return (None, None) if best is None else best[1:]


def chosen(scores, **options):
    found = select(scores, **options)
    return found.position, found.layer


def test_the_smallest_bypass_wins():
    scores = table([[3, 1, 2, 0, 9], [3, -4, 2, 0, 9]])
    found = select(scores)
    assert (found.position, found.layer, found.bypass) == (-1, 1, -4.0)
    assert type(found.position) is int
    assert type(found.layer) is int
    assert found.found
    assert found.reasons == ()
    assert "Layer 1, position -1" in found.why


@pytest.mark.parametrize("score", ["bypass", "induce", "kl"])
def test_a_nan_in_any_score_drops_the_candidate(score):
    scores = table([[-9.0, -1.0, 0, 0, 0]])
    scores[score][0, 0] = NAN
    assert chosen(scores) == (-1, 1)
    assert select(scores).tallies == {"nan": 1, "layer": 1, "kl": 0, "induce": 0}


def test_kl_equal_to_the_limit_stays_and_above_it_drops():
    above = np.nextafter(0.1, 1)
    assert chosen(table([[-2, -1, 0, 0, 0]], kl=[[0.1, 0, 0, 0, 0]])) == (-1, 0)
    assert chosen(table([[-2, -1, 0, 0, 0]], kl=[[above, 0, 0, 0, 0]])) == (-1, 1)


def test_equality_holds_in_the_precision_of_the_table():
    scores = table([[-2, -1, 0, 0, 0]], kl=[[0.1, 0, 0, 0, 0]], dtype=np.float32)
    assert float(scores["kl"][0, 0]) > 0.1
    assert chosen(scores) == (-1, 0)


def test_induce_equal_to_the_limit_stays_and_below_it_drops():
    assert chosen(table([[-2, -1, 0, 0, 0]], induce=[[0, 1, 1, 1, 1]])) == (-1, 0)
    assert chosen(table([[-2, -1, 0, 0, 0]], induce=[[-1e-12, 1, 1, 1, 1]])) == (-1, 1)
    assert chosen(table([[-2, -1, 0, 0, 0]], induce=[[-0.0, 1, 1, 1, 1]])) == (-1, 0)


@pytest.mark.parametrize(("n_layers", "last"), [(5, 3), (8, 5), (18, 13), (24, 18), (26, 19)])
def test_layers_from_int_of_four_fifths_on_drop(n_layers, last):
    falling = -np.arange(n_layers, dtype=float)[None]
    assert chosen(table(falling)) == (-1, last)
    assert int(0.8 * n_layers) == last + 1


def test_the_number_of_layers_is_the_attr_before_the_largest_label():
    scores = table([[0, -1, -2, -3, -4]])
    assert chosen(scores) == (-1, 3)
    assert chosen(scores.assign_attrs(n_layers=32)) == (-1, 4)
    assert chosen(scores.assign_attrs(n_layers=np.int64(32))) == (-1, 4)
    assert chosen(scores.assign_attrs(n_layers=None)) == (-1, 3)
    assert select(scores.assign_attrs(n_layers=32)).n_layers == 32


def test_the_largest_label_counts_when_layers_are_a_subset():
    scores = table([[0.0, -1.0, -2.0]], layers=[4, 7, 9])
    assert chosen(scores) == (-1, 7)
    assert select(scores).n_layers == 10


def test_thresholds_are_options():
    scores = table([[-3, -2, -1, 0, -9]], induce=[[-1, 1, 1, 1, 1]], kl=[[0, 5, 0, 0, 0]])
    assert chosen(scores) == (-1, 2)
    assert chosen(scores, kl_max=5.0) == (-1, 1)
    assert chosen(scores, induce_min=-1.0) == (-1, 0)
    assert chosen(scores, layer_fraction=1.0) == (-1, 4)
    assert select(scores, kl_max=5.0).thresholds["kl_max"] == 5.0


def test_exact_ties_go_to_the_lowest_position_then_the_lowest_layer():
    scores = table([[0, 0, 0, -1, 0], [0, -1, -1, 0, 0], [-1, 0, 0, 0, 0]])
    assert chosen(scores) == (-3, 3)
    assert chosen(scores.sel(position=[-2, -1])) == (-2, 1)
    assert [(t.position, t.layer) for t in select(scores).near_ties] == [(-2, 1), (-2, 2), (-1, 0)]


def test_the_order_of_dims_and_labels_does_not_matter():
    rng = np.random.default_rng(0)
    scores = table(rng.normal(size=(3, 6)), induce=rng.normal(size=(3, 6)))
    turned = scores.transpose("layer", "position")
    turned["kl"] = turned["kl"].transpose("position", "layer")
    shuffled = turned.isel(layer=[3, 0, 5, 1, 4, 2], position=[2, 0, 1])
    assert chosen(turned) == chosen(shuffled) == chosen(scores) == brute_force(scores)


def test_labels_count_and_not_places():
    scores = table([[0.0, -5.0], [0.0, 0.0]], positions=[-1, -4], layers=[2, 1], n_layers=12)
    assert chosen(scores) == (-1, 1)


def test_none_admissible_is_an_outcome_with_reasons():
    scores = table(
        [[NAN, -1, -1, -1, -1]], induce=[[1, -1, 1, -1, 1]], kl=[[0, 0, 0.2, 0, 0]], n_layers=5
    )
    found = select(scores)
    assert (found.layer, found.position, found.bypass, found.direction) == (None,) * 4
    assert not found.found
    assert found.near_ties == ()
    assert found.tallies == {"nan": 1, "layer": 1, "kl": 1, "induce": 2}
    assert found.reasons == (
        "None of 5 candidates is admissible.",
        "1 have a score that is NaN (not measured).",
        "1 are from layer 4 on (0.8 of 5 layers).",
        "1 have KL above 0.1.",
        "2 have an induce score below 0.",
    )
    assert found.why == " ".join(found.reasons)
    assert not found.to_dataset()["selected"].any()


def test_a_one_layer_model_has_no_admissible_candidate():
    assert chosen(table([[-1.0]])) == (None, None)


def test_an_empty_table_has_no_candidates():
    found = select(table([[0.0, 1.0]]).isel(layer=slice(0)))
    assert found.layer is None
    assert found.reasons == ("The score table holds no candidates.",)


def test_a_published_failure_is_reported_as_none_admissible():
    # gemma-3-12b, 48 layers: what passes induce and KL is late, what is early breaks the model
    scores = table(
        [[-18.4, NAN], [NAN, -16.36]],
        induce=[[7.243, NAN], [NAN, 1.39]],
        kl=[[13.68, NAN], [NAN, 0.003]],
        positions=[-5, -1],
        layers=[24, 41],
        n_layers=48,
    )
    found = select(scores)
    assert found.layer is None
    assert found.tallies == {"nan": 2, "layer": 2, "kl": 1, "induce": 0}
    # the limit of 15 that was used upstream "finds" a direction that destroys the model
    assert chosen(scores, kl_max=15.0) == (-5, 24)


def test_admissible_marks_each_criterion():
    scores = table([[NAN, 0, 0, 0, 0]], induce=[[1, -1, 1, 1, 1]], kl=[[0, 0, 1, 0, 0]])
    found = admissible(scores)
    assert found["admissible"].dims == ("position", "layer")
    assert found["admissible"].values.tolist() == [[False, False, False, True, False]]
    failed = {
        str(f): np.flatnonzero(~found["passes"].sel(filter=f)).tolist() for f in found.filter.values
    }
    assert failed == {"nan": [0], "layer": [4], "kl": [2], "induce": [1]}
    described = annotate(found)  # as saving does, which refuses what is not declared
    assert described["passes"].attrs["long_name"]


def test_the_direction_comes_along_where_the_table_carries_one():
    scores = table([[0, -1, 0, 0, 0], [0, 0, -2, 0, 0]])
    values = np.arange(2 * 5 * 3).reshape(2, 5, 3).astype(float)
    scores["direction"] = (("position", "layer", "d_model"), values)
    found = select(scores.transpose("d_model", "layer", "position"))
    assert found.direction.dims == ("d_model",)
    assert found.direction.values.tolist() == values[1, 2].tolist()
    assert select(scores.drop_vars("direction")).direction is None


def test_near_ties_without_prompts_go_by_the_tolerance():
    scores = table([[-5.0, -4.9, -4.5, -1.0, -9]])
    assert [t.layer for t in select(scores, tie_tolerance=0.5).near_ties] == [1, 2]
    assert [t.layer for t in select(scores, tie_tolerance=0.05).near_ties] == []
    (tie,) = select(scores, tie_tolerance=0.1 + 1e-9).near_ties
    assert tie.difference == pytest.approx(0.1)
    assert math.isnan(tie.low)


def test_inadmissible_candidates_are_never_near_ties():
    scores = table([[-5.0, -5.0, -5.0, -1.0, -5.0]], kl=[[0, 1, 0, 0, 0]])
    assert [t.layer for t in select(scores).near_ties] == [2]


def with_prompts(columns, families=None):
    """A table whose bypass is the mean of the given values per prompt, one column a layer."""
    values = np.array(columns, dtype=float)
    scores = table([np.nanmean(values, axis=1)], n_layers=10 * len(values))
    scores["bypass_per_prompt"] = (("position", "layer", "prompt"), values[None])
    if families is not None:
        scores = scores.assign_coords(family=("prompt", families))
    return scores


def test_near_ties_with_prompts_go_by_the_paired_interval():
    rng = np.random.default_rng(3)
    shared, noise = rng.normal(0, 5, 40), rng.normal(0, 1, 40)
    noisy = shared + noise - noise.mean() + 0.02
    sure = shared + 0.1 + rng.normal(0, 0.01, 40)
    scores = with_prompts([shared, noisy, sure])
    # the sure difference is within the tolerance that holds without values per prompt
    dropped = scores.drop_vars("bypass_per_prompt")
    assert [t.layer for t in select(dropped).near_ties] == [1, 2]
    found = select(scores)
    assert (found.layer, [t.layer for t in found.near_ties]) == (0, [1])
    (tie,) = found.near_ties
    assert tie.low <= 0 < tie.high
    assert tie.low < tie.difference < tie.high


def test_prompts_that_were_not_measured_are_left_out_of_the_interval():
    rng = np.random.default_rng(4)
    shared = rng.normal(0, 5, 40)
    columns = np.array([shared, shared + 1 + rng.normal(0, 0.1, 40)])
    columns[:, 20:] = np.nan
    assert select(with_prompts(columns)).near_ties == ()


def test_each_candidate_is_compared_on_the_prompts_it_shares_with_the_best():
    rng = np.random.default_rng(6)
    shared = rng.normal(0, 5, 40)
    columns = np.array([shared, shared + 1, shared - shared + 50, shared + rng.normal(1, 0.1, 40)])
    columns[1, :10] = np.nan
    columns[2, 1:] = np.nan  # a single prompt cannot tell it apart
    columns[3, 30:] = np.nan
    scores = with_prompts(columns)
    scores["bypass"][:] = [[0, 1, 50, 1]]
    (tie,) = select(scores).near_ties
    assert tie.layer == 2
    assert math.isnan(tie.low)


def test_near_ties_resample_whole_families():
    rng = np.random.default_rng(5)
    difference = np.repeat([0.9, -0.4, 0.8, -0.5, 0.7], 20) + rng.normal(0, 0.01, 100)
    columns = [np.zeros(100), difference]
    assert select(with_prompts(columns)).near_ties == ()
    families = np.repeat(list("abcde"), 20)
    assert [t.layer for t in select(with_prompts(columns, families)).near_ties] == [1]


def test_one_family_cannot_tell_candidates_apart():
    scores = with_prompts([[0.0, 0.0], [5.0, 6.0]], families=["a", "a"])
    assert [t.layer for t in select(scores).near_ties] == [1]


def test_an_exact_tie_on_prompts_is_a_near_tie():
    scores = with_prompts([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    assert [t.layer for t in select(scores).near_ties] == [1]


def test_the_selection_as_a_dataset_carries_what_was_chosen():
    scores = table([[-5.0, -4.9, 0, 0, -9], [0, 0, 0, 0, 0]])
    scores["direction"] = (("position", "layer", "d_model"), np.ones((2, 5, 3)))
    out = select(scores).to_dataset()
    assert out["selected"].sum() == 1
    assert bool(out["selected"].sel(position=-2, layer=0))
    assert bool(out["near_tie"].sel(position=-2, layer=1))
    assert out["direction"].dims == ("d_model",)
    assert (out.attrs["layer"], out.attrs["position"]) == (0, -2)
    from refusal_nn.store.variables import annotate

    assert "long_name" in annotate(out)["selected"].attrs


def test_a_stored_run_works_like_its_root_dataset():
    scores = table([[0, -1, 0, 0, 0]])
    assert chosen(xr.DataTree.from_dict({"/": scores, "/other": xr.Dataset()})) == (-1, 1)


def test_the_table_is_left_as_it_was():
    scores = table([[0, -1, 0, 0, 0]], n_layers=5)
    before = scores.copy(deep=True)
    select(scores)
    xr.testing.assert_identical(scores, before)


BAD = {
    "no induce, kl .*it has bypass": lambda s: s.drop_vars(["induce", "kl"]),
    "no bypass": lambda s: s.drop_vars("bypass"),
    "kl has dims": lambda s: s.assign(kl=s["kl"].isel(layer=0, drop=True)),
    "induce has dims": lambda s: s.assign(induce=s["induce"].expand_dims(run=2)),
    "no labels for layer": lambda s: s.drop_vars("layer"),
    "no labels for position": lambda s: s.drop_vars("position"),
    "-n to -1": lambda s: s.assign_coords(position=[0]),
    "layer -1": lambda s: s.assign_coords(layer=[-1, 0, 1, 2, 3]),
    "occur twice": lambda s: s.assign_coords(layer=[0, 0, 1, 2, 3]),
    "whole numbers": lambda s: s.assign_coords(layer=[0, 0.5, 1, 2, 3]),
    "layer 4 but": lambda s: s.assign_attrs(n_layers=4),
    "'many'": lambda s: s.assign_attrs(n_layers="many"),
    "32.5": lambda s: s.assign_attrs(n_layers=32.5),
    "must be numbers": lambda s: s.assign(kl=s["kl"].astype(str)),
    "a dict": lambda s: {"bypass": s["bypass"]},
    "bypass_per_prompt has dims": lambda s: s.assign(
        bypass_per_prompt=(("layer", "prompt"), np.zeros((5, 2)))
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_a_table_that_is_none_is_refused_with_the_reason(message):
    with pytest.raises(RequestError, match=message):
        select(BAD[message](table([[0, -1, 0, 0, 0]])))


@pytest.mark.parametrize(
    "options",
    [
        {"kl_max": NAN},
        {"kl_max": "a"},
        {"layer_fraction": None},
        {"induce_min": NAN},
        {"layer_fraction": 1.2},
        {"layer_fraction": -0.1},
        {"tie_tolerance": -1},
        {"tie_tolerance": NAN},
    ],
)
def test_thresholds_that_are_none_are_refused(options):
    with pytest.raises(RequestError, match=next(iter(options))):
        select(table([[0, -1, 0, 0, 0]]), **options)


scores_of_any_kind = hnp.array_shapes(min_dims=2, max_dims=2, max_side=7).flatmap(
    lambda shape: st.tuples(
        *(
            hnp.arrays(
                float,
                shape,
                # a few values, so that ties and equality with the thresholds are common
                elements=st.sampled_from(
                    [-1.0, -0.0, 0.0, 0.05, 0.1, 0.2, 1.0, NAN, np.inf, -np.inf]
                ),
            )
            for _ in range(3)
        ),
        st.permutations(range(-shape[0] - 2, 0)).map(lambda p: p[: shape[0]]),
        st.permutations(range(shape[1] + 4)).map(lambda p: p[: shape[1]]),
        st.none() | st.integers(12, 40),
    )
)


@settings(max_examples=300, deadline=None)
@given(scores_of_any_kind)
def test_selection_equals_a_plain_loop_on_any_table(drawn):
    bypass, induce, kl, positions, layers, n_layers = drawn
    attrs = {} if n_layers is None else {"n_layers": n_layers}
    scores = table(bypass, induce, kl, positions=positions, layers=layers, **attrs)
    assert chosen(scores) == brute_force(scores)
    found = select(scores)
    assert found.n_admissible == int(found.admissible["admissible"].sum())
    assert found.found == bool(found.n_admissible)
