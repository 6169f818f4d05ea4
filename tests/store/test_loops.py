"""Loops: state that is kept, told, and found again after any death of the process."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from refusal_nn.errors import StoreError
from refusal_nn.store import MemoryRecorder, Next, Recorder, open_runs, step_rng, verify
from refusal_nn.store.manifest import stage_progress
from tests.long.tier import Extent
from tests.store.looping import ENDS, STEPS, analyse, first_state, recorder, records, step
from tests.store.synthetic import batches, content


@pytest.fixture(params=["memory", "run"])
def rec(request, tmp_path):
    return MemoryRecorder() if request.param == "memory" else recorder(tmp_path)


def loop(rec, body=step, **options):
    return rec.loop("grow", first_state(), STEPS, body, **{"records": records(), **options})


def by_hand() -> tuple[dict, list[dict]]:
    """The loop written out, with no recorder."""
    state, told = first_state(), []
    for i in range(ENDS):
        found = step(i, state.copy(deep=True), MemoryRecorder())
        told.append(found.records)
        state = state.assign({n: (state[n].dims, np.asarray(v)) for n, v in found.state.items()})
    return {n: v.values for n, v in state.data_vars.items()}, told


def test_a_loop_is_what_its_steps_do_one_after_the_other(rec):
    assert isinstance(rec, Recorder)
    found, (state, told) = loop(rec), by_hand()
    assert found.steps == ENDS
    for name, values in state.items():
        np.testing.assert_array_equal(found.state[name].values, values)
        assert found.state[name].dtype == first_state()[name].dtype
    for name in records().data_vars:
        along = found.records[name].transpose("step", ...)
        expected = np.array([t[name] for t in told]).astype(along.dtype)
        np.testing.assert_array_equal(along.values, expected)
    assert found.records["step"].values.tolist() == list(range(ENDS))
    assert found.state.attrs == {"site": "resid_pre"}
    assert found.records["loop_loss"].attrs["units"] == "nats"


@pytest.mark.parametrize("every", [None, 4, 100])
def test_both_recorders_give_the_same_loop_however_often_it_is_kept(tmp_path, every):
    memory, run = MemoryRecorder(), recorder(tmp_path)
    one, other = loop(memory), loop(run, every=every)
    xr.testing.assert_identical(one.state, other.state)
    xr.testing.assert_identical(one.records, other.records)
    again = loop(run, lambda *_: pytest.fail("computed again"))
    xr.testing.assert_identical(again.state, one.state)
    xr.testing.assert_identical(again.records, one.records)
    xr.testing.assert_identical(loop(memory, lambda *_: pytest.fail("again")).state, one.state)


def test_both_recorders_commit_the_same_groups(tmp_path):
    memory, run = analyse(MemoryRecorder()), analyse(recorder(tmp_path))
    assert set(memory.groups) == set(run.groups) >= {"/grow", "/grow_state", "/grow_3_measure"}
    for group in memory.groups:
        xr.testing.assert_equal(memory[group].to_dataset(), run[group].to_dataset().load())
    assert run["grow"].sizes["step"] == ENDS
    verify(tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.zarr"]


def test_progress_counts_steps_and_ends_where_the_loop_does(tmp_path):
    for make in (MemoryRecorder, lambda progress: recorder(tmp_path, progress=progress)):
        said: list[tuple[str, int, int]] = []
        loop(make(progress=lambda *a, said=said: said.append(a)), every=5)
        told = [a for a in said if a[0] == "grow"]
        assert told == [("grow", k, STEPS) for k in (0, 5, 10, 15)] + [("grow", ENDS, ENDS)]


class StopError(Exception):
    pass


@pytest.mark.parametrize(("every", "again"), [(None, 9), (4, 8), (100, 0)])
def test_a_loop_that_failed_goes_on_from_the_state_last_kept(tmp_path, every, again):
    done: list[int] = []

    def failing(i, state, scope):
        done.append(i)
        if i == 9 and done.count(9) == 1:
            raise StopError
        return step(i, state, scope)

    with pytest.raises(StopError):
        loop(recorder(tmp_path), failing, every=every)
    assert stage_progress(tmp_path / "run.zarr.partial")["grow"] == (again, STEPS)
    found = loop(recorder(tmp_path), failing, every=every)
    assert done == [*range(10), *range(again, ENDS)]
    expected = loop(MemoryRecorder())
    xr.testing.assert_identical(found.state, expected.state)
    xr.testing.assert_identical(found.records, expected.records)


def test_a_loop_that_is_not_finished_cannot_be_kept(tmp_path):
    rec = recorder(tmp_path)
    with pytest.raises(ZeroDivisionError):
        loop(rec, lambda *_: 1 / 0)
    with pytest.raises(StoreError, match="cannot keep stage 'grow'"):
        rec.commit({}, keep=["grow"])


def damage(array: Path) -> None:
    """Change one bit of its only chunk."""
    (chunk,) = (p for p in (array / "c").rglob("*") if p.is_file())
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


@pytest.mark.parametrize("last", [3, ENDS])
def test_damaged_records_are_told_and_not_taken(tmp_path, last):
    """As the next step is written beside them, and as the loop ends."""

    def progress(name, done, total):
        if (name, done) == ("grow", last):
            damage(tmp_path / "run.zarr.partial" / "grow.loop" / "loop_loss")

    with pytest.raises(StoreError, match="records of loop 'grow' are damaged"):
        loop(recorder(tmp_path, progress=progress))
    with pytest.raises(StoreError, match="records of loop 'grow' are damaged"):
        loop(recorder(tmp_path))


def test_a_damaged_state_is_told_and_not_taken(tmp_path):
    def stopping(i, state, scope):
        if i == 3:
            raise StopError
        return step(i, state, scope)

    with pytest.raises(StopError):
        loop(recorder(tmp_path), stopping)
    damage(tmp_path / "run.zarr.partial" / "grow.loop" / "at_3" / "loop_vector")
    with pytest.raises(StoreError, match="state of loop 'grow' after step 2 is damaged"):
        loop(recorder(tmp_path))


@pytest.mark.parametrize(
    "options",
    [
        {"steps": STEPS + 1, "records": records(STEPS + 1)},
        {"records": records().drop_vars("loop_note")},
        {"state": first_state().isel(d_model=slice(0, 2))},
    ],
)
def test_a_loop_asked_for_differently_is_refused(tmp_path, rec, options):
    loop(rec)
    wanted = {"state": first_state(), "steps": STEPS, "records": records(), **options}
    with pytest.raises(StoreError, match="loop 'grow' was begun with another state, other records"):
        rec.loop("grow", wanted["state"], wanted["steps"], step, records=wanted["records"])


def test_a_loop_begun_differently_is_refused_when_it_is_resumed(tmp_path):
    with pytest.raises(ZeroDivisionError):
        loop(recorder(tmp_path), lambda *_: 1 / 0)
    with pytest.raises(StoreError, match="resume with the options of the first attempt"):
        recorder(tmp_path).loop("grow", first_state(), 7, step, records=records(7))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda n: Next({**n.state, "loop_vector": np.zeros((2, 6))}, n.records),
            r"state after step 0: variable 'loop_vector' has shape \(2, 6\), the first state is \(4, 6",
        ),
        (
            lambda n: Next({**n.state, "loop_vector": np.zeros(6)}, n.records),
            r"variable 'loop_vector' has shape \(6,\), the first state is \(4, 6\)",
        ),
        (lambda n: Next({"loop_name": "x"}, n.records), "state after step 0: computed"),
        (lambda n: Next({**n.state, "loop_chosen": np.ones(4)}, n.records), "is float64"),
        (lambda n: Next(None, n.records), "step 0 returned no state"),
        (lambda n: Next(n.state), r"records of step 0: computed \[\]"),
        (
            lambda n: Next(n.state, {**n.records, "loop_path": np.ones(3)}),
            r"shape \(3,\), the template there is \(4,\)",
        ),
        (lambda n: Next(n.state, {**n.records, "loop_loss": np.ones(1)}), "template there is"),
    ],
)
def test_a_step_that_changes_the_form_of_state_or_records_is_refused(rec, spoil, message):
    with pytest.raises(StoreError, match=message):
        loop(rec, lambda *given: spoil(step(*given)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, r"steps \(0\) and every \(None\) must be 1 at least"),
        ({"every": 0}, "must be 1 at least"),
        ({"state": {}}, "empty state"),
        ({"records": records(3)}, "must lie along dim 'step' of length 20"),
        (
            {"records": records().assign(loop_measured=("layer", np.ones(4)))},
            "'loop_measured' lacks",
        ),
        ({"state": xr.Dataset({"nobody": ("layer", np.ones(2))})}, "'nobody' is not declared"),
    ],
)
def test_a_loop_that_cannot_be_kept_is_refused_before_its_first_step(rec, options, message):
    wanted = {"state": first_state(), "steps": STEPS, "records": records(), **options}
    state, steps = wanted.pop("state"), wanted.pop("steps")
    with pytest.raises(StoreError, match=message):
        rec.loop("grow", state, steps, lambda *_: pytest.fail("a step was done"), **wanted)


def test_scratch_state_has_any_names_and_no_labels(rec):
    def body(i, state, scope):
        assert isinstance(state, xr.Dataset)
        return {"a": state["a"].values + i, "moments": state["moments"].values * 0.5}

    found = rec.loop("scratch", {"a": 1, "moments": np.ones((2, 3))}, 4, body)
    assert found.state["a"].item() == 1 + 0 + 1 + 2 + 3
    np.testing.assert_array_equal(found.state["moments"].values, np.full((2, 3), 0.5**4))
    assert dict(found.records.sizes) == {"step": 4}
    assert not found.records.data_vars


def test_a_loop_within_a_loop_is_named_after_the_step(rec):
    def inner(i, state, scope):
        return {"x": state["x"].values + 1}

    def outer(i, state, scope):
        found = scope.loop("inner", {"x": np.zeros(2)}, i + 1, inner)
        with pytest.raises(StoreError, match="cannot finish the run"):
            scope.commit({})
        return {"total": state["total"].values + found.state["x"].values.sum()}

    found = rec.loop("outer", {"total": np.zeros(())}, 3, outer)
    assert found.state["total"].item() == 2 * (1 + 2 + 3)
    tree = rec.commit({}, keep=["outer_2_inner"])
    assert tree["outer_2_inner"].sizes["step"] == 3


def test_a_stage_without_a_name_is_called_as_the_step(rec):
    template = xr.Dataset({"loop_measured": ("layer", np.zeros(4))}, {"layer": range(4)})

    def body(i, state, scope):
        found = scope.stage("", template, batches(4, 4, "layer"), lambda b: template + float(i))
        return {"x": found["loop_measured"].values}

    assert rec.loop("round", {"x": np.zeros(4)}, 3, body).state["x"].values.tolist() == [2.0] * 4
    assert rec.commit({}, keep=["round_1"])["round_1"]["loop_measured"].values[0] == 1


def test_random_numbers_of_a_step_depend_on_seed_and_step_alone():
    one = step_rng(3, 8).normal(size=4)
    step_rng(3, 7).normal(size=100)
    np.testing.assert_array_equal(step_rng(3, 8).normal(size=4), one)
    assert not np.array_equal(step_rng(8, 3).normal(size=4), one)


class TwoAtATime:
    """Steps done by twos, of which only the second tells its state."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def advance(self, first, most, state, ledger):
        self.asked.append((first, most))
        out = []
        for i in range(first, first + min(2, most)):
            found = step(i, state, MemoryRecorder())
            state = state.assign(
                {n: (state[n].dims, np.asarray(v)) for n, v in found.state.items()}
            )
            out.append(Next(None, found.records, found.done))
            if found.done:
                break
        return [*out[:-1], Next(state, out[-1].records, out[-1].done)]


def test_steps_done_several_at_a_time_are_the_same_steps(rec):
    body, expected = TwoAtATime(), loop(MemoryRecorder())
    found = loop(rec, body)
    assert [a for a, _ in body.asked] == list(range(0, ENDS, 2))
    xr.testing.assert_identical(found.state, expected.state)
    xr.testing.assert_identical(found.records, expected.records)


def test_steps_done_several_at_a_time_must_tell_of_themselves(rec):
    class Silent:
        def advance(self, first, most, state, ledger):
            return []

    with pytest.raises(StoreError, match="0 steps were told of where 1 to 20"):
        loop(rec, Silent())


def killed(folder: Path, rng: random.Random) -> str:
    """The program killed at a random moment; what state its run was left in."""
    command = [sys.executable, "-m", "tests.store.looping", str(folder), "0.02"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(rng.randint(1, 60)):  # of the 69 lines that tell of progress
            process.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
    return "".join(run.state for run in open_runs(folder))


def check_kills(folder: Path, extent: Extent) -> None:
    analyse(recorder(folder / "whole"))
    whole = content(folder / "whole" / "run.zarr")
    rng = random.Random(extent.seed)
    states = []
    for i in range(extent.n):
        states.append(killed(folder / str(i), rng))
        again = recorder(folder / str(i))
        if not again.already_complete:
            analyse(again)
        assert content(folder / str(i) / "run.zarr") == whole
        verify(folder / str(i) / "run")
    assert states.count("partial") >= extent.n // 2


@pytest.mark.long(n=20, sample=2, seed=8)
def test_a_loop_killed_at_random_moments_ends_with_the_identical_run(
    tmp_path: Path, extent: Extent
) -> None:
    check_kills(tmp_path, extent)
