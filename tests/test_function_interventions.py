"""A function of one's own is an intervention: applied as a hook would, here and where it travels."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nnsight
import numpy as np
import pytest
import torch

import refusal_nn as rn
from refusal_nn.errors import BackendError, InterventionError, PreflightError
from refusal_nn.interventions import (
    ActivationAddition,
    DirectionalAblation,
    FunctionIntervention,
    ZeroAblation,
    from_json,
    to_json,
)
from refusal_nn.testing import D_MODEL, hooks, plain_module, tiny_model
from refusal_nn.tracing import Capture, capture_tokens, completions, generate_request, pad, run

nnsight.register("tests")  # as a script's own functions; those of a package only where it says so

ROWS = [[7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23]]
RNG = np.random.default_rng(0)
V = RNG.normal(size=D_MODEL)
W = RNG.normal(size=D_MODEL)
LOCK = threading.Lock()
MODEL = tiny_model("llama")


def rotated(x, vector, *, angle=0.5, options=None):
    scale = (options or {}).get("scale", 1.0)
    return scale * (x * np.cos(angle) + turned(x, vector) * np.sin(angle))


def turned(x, vector):
    return x.roll(1, dims=-1) + vector


def doubled_in_place(x):
    x *= 2
    return x


def one_token(x):
    return x[:, :1]


def nothing(x):
    return None


def locked(x):
    with LOCK:
        return x


def through_a_model(x):
    return MODEL.module.lm_head(x)[..., : x.shape[-1]]


ROTATION = {"vector": V, "angle": 0.3, "options": {"scale": 0.5}}


def edit(function=rotated, args=ROTATION, **where) -> FunctionIntervention:
    return FunctionIntervention(function, args, **where)


def by_hand(x: torch.Tensor) -> torch.Tensor:
    return rotated(x, torch.tensor(V, dtype=x.dtype), angle=0.3, options={"scale": 0.5})


def residuals(model, interventions) -> np.ndarray:
    captures = [Capture("x", "resid_post", positions=(-2, -1))]
    return capture_tokens(model, ROWS, captures, interventions)["x"]


def hooked(changes) -> np.ndarray:
    module, lengths = plain_module("llama"), [len(r) for r in ROWS]
    found = hooks.everything(module, "llama", hooks.pad_rows(ROWS), changes)
    layers = [hooks.at_end(found["resid_post", i], lengths, "left", (-2, -1)) for i in range(3)]
    return torch.stack(layers).numpy()


SITES = ("resid_pre", "attn_in", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")


@pytest.mark.parametrize("site", SITES)
def test_a_function_does_what_a_hook_does(site: str) -> None:
    if site == "resid_mid":  # a hook on the norm's input would change the MLP alone
        expected = hooked(
            [
                (*hooks.place("llama", 1, "resid_pre"), keep := Keep()),
                (*hooks.place("llama", 1, "attn_out"), lambda x: by_hand(keep.x + x) - keep.x),
            ]
        )
    else:
        expected = hooked([(*hooks.place("llama", 1, site), by_hand)])
    found = residuals(tiny_model("llama"), [edit(layers=[1], site=site)])
    assert np.abs(found - residuals(tiny_model("llama"), [])).max() > 0.1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


class Keep:
    x: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.x = x
        return x


def test_layers_heads_and_positions_choose_where_it_acts() -> None:
    def heads(x):  # [row, token, 4 heads of 8], the last token of left-padded rows
        x = x.unflatten(-1, (4, 8)).clone()
        x[:, -1, [0, 2]] *= 2
        return x.flatten(-2)

    expected = hooked([(*hooks.place("llama", 2, "z"), heads)])
    where = {"layers": [2], "site": "z", "heads": [0, 2], "positions": [-1]}
    found = residuals(tiny_model("llama"), [edit(doubled_in_place, {}, **where)])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    everywhere = [(*hooks.place("llama", i, "resid_pre"), by_hand) for i in range(3)]
    np.testing.assert_allclose(
        residuals(tiny_model("llama"), [edit()]), hooked(everywhere), rtol=0, atol=1e-5
    )


def test_what_is_written_in_place_counts_once_and_where_it_is_returned() -> None:
    doubling = edit(doubled_in_place, {}, layers=[1], site="resid_mid")
    keep = Keep()
    expected = hooked(
        [
            (*hooks.place("llama", 1, "resid_pre"), keep),
            (*hooks.place("llama", 1, "attn_out"), lambda x: 2 * (keep.x + x) - keep.x),
        ]
    )
    np.testing.assert_allclose(
        residuals(tiny_model("llama"), [doubling]), expected, rtol=0, atol=1e-5
    )


def test_functions_and_named_interventions_are_applied_in_order() -> None:
    unit = torch.tensor(W / np.linalg.norm(W), dtype=torch.float32)

    def ablated(x: torch.Tensor) -> torch.Tensor:
        return x - (x @ unit)[..., None] * unit

    mine, ablation = edit(layers=[1]), DirectionalAblation(W, ["resid_pre"], layers=[1])
    at = hooks.place("llama", 1, "resid_pre")
    for order, change in (
        ([mine, ablation], lambda x: ablated(by_hand(x))),
        ([ablation, mine], lambda x: by_hand(ablated(x))),
    ):
        found = residuals(tiny_model("llama"), order)
        np.testing.assert_allclose(found, hooked([(*at, change)]), rtol=0, atol=1e-5)


def tokens(model, interventions) -> list[list[int]]:
    batch = pad(ROWS, model.pad_token)
    (out,) = run(model, [generate_request(model, batch, interventions, max_new_tokens=8)])
    return completions(model, out["ids"])


def test_it_acts_at_every_step_of_a_generation() -> None:
    changes = [(*hooks.place("llama", 1, "resid_pre"), by_hand)]
    expected = hooks.greedy(plain_module("llama"), ROWS, changes, n=8)
    model = tiny_model("llama")
    assert tokens(model, [edit(layers=[1])]) == expected
    assert tokens(model, [edit(layers=[1])]) != tokens(model, [])


def test_half_precision_reaches_the_function_as_it_is() -> None:
    model = tiny_model("llama", torch.bfloat16)
    found = residuals(model, [edit(seen, {"vector": V}, layers=[0])])
    assert np.isfinite(found).all()


def seen(x, vector):
    assert x.dtype == vector.dtype == torch.bfloat16
    return (x.float() + 1).double()


def test_a_dry_run_gives_the_same_numbers_and_tokens() -> None:
    local, dry = tiny_model("llama"), tiny_model("llama", backend="dry-run")
    edits = [ActivationAddition(W, layers=[0]), edit(layers=[1, 2], site="mlp_out")]
    np.testing.assert_allclose(
        residuals(dry, edits), residuals(local, edits), rtol=0, atol=1e-5 * 10
    )
    assert tokens(dry, edits) == tokens(local, edits)


def test_evaluate_takes_one_and_its_results_say_which() -> None:
    model = rn.load_model("tiny-refuser")
    prompts = rn.load_prompts("tiny-bench").test[::40]
    negated = FunctionIntervention(negative, layers=[3], site="resid_post")
    tree = rn.evaluate(model, prompts, {"negated": [negated]}, max_new_tokens=8)
    texts = tree["completion"]
    assert (texts.sel(intervention="negated") != texts.sel(intervention="baseline")).any()
    found = rn.tracing.capture(model, ["hello"], layers=[3], interventions=[negated])
    (item,) = json.loads(found.attrs["interventions"])
    assert item["function"].endswith("test_function_interventions.negative")
    assert len(item["source_sha256"]) == 64


def negative(x):
    return -x


def test_json_names_the_function_and_cannot_give_it_back() -> None:
    one = edit(layers=[1])
    text = to_json([ZeroAblation(), one])
    item = json.loads(text)[1]
    assert item["function"] == f"{__name__}.rotated"
    assert item["args"]["angle"] == 0.3
    assert item["args"]["vector"]["shape"] == [D_MODEL]
    with pytest.raises(
        InterventionError, match=r"function of your own, .*rotated \(SHA-256 .* make it again"
    ):
        from_json(text)
    assert one == edit(layers=[1])
    assert hash(one) == hash(edit(layers=[1]))
    for other in (
        edit(layers=[2]),
        edit(args={**ROTATION, "vector": W}, layers=[1]),
        edit(args={**ROTATION, "angle": 0.4}, layers=[1]),
        edit(layers=[1], site="mlp_out"),
    ):
        assert one != other


def write(folder: Path, name: str, text: str) -> ModuleType:
    (folder / f"{name}.py").write_text(text)
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    return importlib.import_module(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def test_the_hash_follows_what_the_function_calls(folder: Path) -> None:
    def hash_of(name: str, body: str) -> str:
        text = f"def inner(x):\n    return {body}\n\ndef outer(x):\n    return inner(x)\n"
        made = FunctionIntervention(write(folder, name, text).outer)
        return str(json.loads(to_json([made]))[0]["source_sha256"])

    first, other = hash_of("first_version", "x"), hash_of("other_version", "x + 1")
    assert first != other


REFUSED = {
    "lambda": (lambda: edit(lambda x: x, {}), r"is a lambda, a method or defined inside another"),
    "closure": (lambda: edit(inside(3.0), {}), r"pass what it needs in args"),
    "method": (lambda: edit(MODEL.decode, {}), r"a function is needed, got a method"),
    "module": (lambda: edit(torch.nn.ReLU(), {}), r"a function is needed, got a ReLU"),
    "missing": (lambda: edit(rotated, {}), r"cannot be called .*missing a required argument"),
    "unknown": (lambda: edit(nothing, {"y": 1}), r"arguments y: got an unexpected keyword"),
    "a model": (lambda: edit(args={**ROTATION, "angle": MODEL}), r"argument 'angle' holds a Model"),
    "nan": (lambda: edit(args={**ROTATION, "angle": np.nan}), r"'angle' is nan; give a finite"),
    "list": (lambda: edit(args=[V]), r"args is a list; give the arguments of .* by name"),
    "site": (lambda: edit(site="logits"), r"no site 'logits'"),
    "no source": (lambda: edit(typed(), {}), r"source of typed.f cannot be read"),
}


def inside(factor):
    def scaled(x):
        return factor * x

    return scaled


def typed():
    names = {"__name__": "typed"}
    exec("def f(x):\n    return x\n", names)
    return names["f"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_function_to_record_and_ship_is_refused_when_it_is_made(name: str) -> None:
    make, reason = REFUSED[name]
    with pytest.raises(InterventionError, match=reason):
        make()


@pytest.mark.parametrize(("function", "got"), [(one_token, r"\[3, 1, 32\]"), (nothing, "NoneType")])
def test_a_function_that_returns_something_else_is_named(function, got: str) -> None:
    with pytest.raises(
        BackendError,
        match=rf"{function.__name__} must return a tensor of shape \[3, 5, 32\].*returned {got}",
    ):
        residuals(tiny_model("llama"), [edit(function, {}, layers=[1])])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (locked, r"cannot be serialised .*; keep locks, open files"),
        (through_a_model, r"through_a_model refers to a loaded model, .*in args"),
    ],
)
def test_a_function_that_cannot_travel_is_refused(function, reason: str) -> None:
    dry = tiny_model("llama", backend="dry-run")
    with pytest.raises(PreflightError, match=reason):
        residuals(dry, [edit(function, {}, layers=[1])])


def test_a_function_of_a_package_travels_once_it_is_registered(folder: Path) -> None:
    dry = tiny_model("llama", backend="dry-run")
    text = "import torch\n\ndef halved(x):\n    return torch.mul(x, 0.5)\n"
    made = FunctionIntervention(write(folder, "not_on_servers", text).halved, layers=[1])
    with pytest.raises(
        PreflightError,
        match=r"halved refers to not_on_servers, .*nnsight.register\('not_on_servers'\)",
    ):
        residuals(dry, [made])
    nnsight.register("not_on_servers")
    expected = residuals(tiny_model("llama"), [made])
    np.testing.assert_allclose(residuals(dry, [made]), expected, rtol=0, atol=1e-5)
