"""Patched runs equal a loop of plain PyTorch hooks, one patch of one pair at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from refusal_nn.attribution import Metric
from refusal_nn.patching import Swap, generate, heads, positions
from refusal_nn.prompts import Pairs
from refusal_nn.testing import D_HEAD, D_MODEL, N_HEADS, N_LAYERS, hooks, plain_module, tiny_model
from tests.patching.conftest import made_pairs

FAMILIES = ("llama", "gpt2", "neox", "gemma2")
TOKENS, AGAINST = (7, 8, 9), (20, 21)
DIRECTION = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(5)).double()
METRICS = {
    "refusal-log-odds": Metric.refusal_log_odds(TOKENS),
    "logit-difference": Metric.logit_difference(TOKENS, AGAINST),
    "projection": Metric.projection(DIRECTION.numpy()),
    "kl": Metric.kl(),
}
Place = tuple[int, str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]


class Oracle:
    """One pair at a time, unpadded, on the plain module."""

    def __init__(self, family: str, metric: str) -> None:
        self.family, self.metric = family, metric
        self.module = plain_module(family)
        chat = tiny_model(family).chat
        rows, self.rows = made_pairs().to_rows(), []
        for row in rows:
            tokens = chat.tokens([row["clean"], row["corrupted"]])
            clean = self.run(tokens[0])
            # a random model has no opinion: whichever prompt scores higher counts as harmful
            if self.value(clean, clean) < self.value(self.run(tokens[1]), clean) and metric != "kl":
                row["clean"], row["corrupted"] = row["corrupted"], row["clean"]
                tokens.reverse()
            self.rows.append(tokens)
        self.pairs = Pairs.from_rows(rows, name="made")

    def run(self, row: Sequence[int], changes: Sequence[tuple] = ()) -> dict:
        return hooks.everything(self.module, self.family, hooks.pad_rows([row]), changes)

    def value(self, found: dict, clean: dict) -> float:
        logits = found["logits", -1][0, -1].double()
        if self.metric == "refusal-log-odds":
            p = logits.softmax(-1)[list(TOKENS)].sum()
            return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))
        if self.metric == "logit-difference":
            return float(logits[list(TOKENS)].mean() - logits[list(AGAINST)].mean())
        if self.metric == "projection":
            x = found["resid_post", N_LAYERS - 1][0, -1].double()
            return float(x @ (DIRECTION / DIRECTION.norm()))
        base = clean["logits", -1][0, -1].double().log_softmax(-1)
        return float((base.exp() * (base - logits.log_softmax(-1))).sum())

    def unpatched(self) -> np.ndarray:
        """``[pair, (clean, corrupted)]``."""
        out = []
        for pair in self.rows:
            clean = self.run(pair[0])
            out.append([self.value(self.run(row), clean) for row in pair])
        return np.array(out)

    def patched(self, k: int, direction: str, places: Sequence[Place]) -> float:
        """Pair ``k`` with changes made of the other prompt's activation."""
        clean_row, corrupted_row = self.rows[k]
        base, donor = (
            (corrupted_row, clean_row) if direction == "sufficiency" else (clean_row, corrupted_row)
        )
        other = self.run(donor)
        changes = []
        for layer, site, mix in places:
            value = other[site, layer]
            value = value.flatten(-2) if site == "z" else value

            def change(x: torch.Tensor, value=value, mix=mix) -> torch.Tensor:
                return mix(x.clone(), value)

            changes.append((*hooks.place(self.family, layer, site), change))
        return self.value(self.run(base, changes), self.run(clean_row))


def at_token(position: int) -> Callable:
    def mix(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        x[:, position] = value[:, position]
        return x

    return mix


def at_head(head: int, places: Sequence[int] | None = None) -> Callable:
    part = slice(head * D_HEAD, (head + 1) * D_HEAD)

    def mix(x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        for p in range(x.shape[1]) if places is None else places:
            x[:, p, part] = value[:, p, part]
        return x

    return mix


def close(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max())


CASES = [(f, "refusal-log-odds", d) for f in FAMILIES for d in ("sufficiency", "necessity")] + [
    ("llama", m, d) for m in list(METRICS)[1:] for d in ("sufficiency", "necessity")
]


@pytest.mark.parametrize(("family", "metric", "direction"), CASES)
def test_every_site_layer_and_position_equals_hooks(family, metric, direction):
    oracle = Oracle(family, metric)
    found = positions(
        tiny_model(family),
        oracle.pairs,
        metric=METRICS[metric],
        interchange=direction,
        positions=[-5, -3, -2, -1],
        screen=False,
        batch_size=7,
    )
    unpatched = oracle.unpatched()
    close(found["clean_metric"].values, unpatched[:, 0])
    close(found["corrupted_metric"].values, unpatched[:, 1])
    expected = np.array(
        [
            [
                [
                    [
                        oracle.patched(k, direction, [(layer, site, at_token(p))])
                        for p in (-5, -3, -2, -1)
                    ]
                    for layer in range(N_LAYERS)
                ]
                for site in ("resid_pre", "attn_out", "mlp_out")
            ]
            for k in range(3)
        ]
    )
    close(found["patched_metric"].values, expected)
    start = unpatched[:, 1] if direction == "sufficiency" else unpatched[:, 0]
    sign = 1 if direction == "sufficiency" else -1
    difference = unpatched[:, 0] - unpatched[:, 1]
    moved = sign * (expected - start[:, None, None, None])
    recovery = moved / difference[:, None, None, None]
    assert np.allclose(found["recovery"].values, recovery, rtol=1e-3, atol=1e-3)
    mean = moved.mean(axis=0) / difference.mean()
    assert np.allclose(found["recovery_mean"].values, mean, rtol=1e-3, atol=1e-3)
    assert np.abs(expected - start[:, None, None, None]).max() > 1e-2, "no patch did anything"


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_a_cumulative_patch_equals_hooks_at_all_layers_up_to_it(family):
    oracle = Oracle(family, "refusal-log-odds")
    found = positions(
        tiny_model(family),
        oracle.pairs,
        metric=METRICS["refusal-log-odds"],
        sites=["attn_out"],
        cumulative=True,
        positions=[-2, -1],
        screen=False,
    )
    for k in range(3):
        for layer in range(N_LAYERS):
            for j, p in enumerate((-2, -1)):
                places = [(b, "attn_out", at_token(p)) for b in range(layer + 1)]
                expected = oracle.patched(k, "sufficiency", places)
                ours = float(found["patched_metric"][k, 0, layer, j])
                assert ours == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("where", [None, [-3, -1]])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_equals_hooks(family, where):
    oracle = Oracle(family, "refusal-log-odds")
    found = heads(
        tiny_model(family),
        oracle.pairs,
        metric=METRICS["refusal-log-odds"],
        positions=where,
        screen=False,
        batch_size=5,
        n_permutations=99,
    )
    unpatched = oracle.unpatched()
    difference = unpatched[:, 0] - unpatched[:, 1]
    for i, direction in enumerate(("sufficiency", "necessity")):
        start = unpatched[:, 1] if i == 0 else unpatched[:, 0]
        for layer in range(N_LAYERS):
            for head in range(N_HEADS):
                expected = np.array(
                    [
                        oracle.patched(k, direction, [(layer, "z", at_head(head, where))])
                        for k in range(3)
                    ]
                )
                moved = (expected - start) * (1 if i == 0 else -1)
                ours = found["recovery"].values[i, :, layer, head] * difference
                assert np.abs(ours - moved).max() <= 2e-5


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_patched_generation_equals_hooks_on_the_prompt(family):
    """Tokens are compared; a hook on the prompt's positions is one on every recomputed prompt."""
    oracle = Oracle(family, "refusal-log-odds")
    model, pairs = tiny_model(family), oracle.pairs
    swaps = [Swap("resid_pre", 1, (-2, -1)), Swap("z", 2, None, (1, 3))]
    found = generate(model, pairs, {"patch": swaps}, max_new_tokens=6, batch_size=2)
    changed = 0
    for k, (clean, corrupted) in enumerate(oracle.rows):
        other = oracle.run(clean)
        n = len(corrupted)

        def residual(x, n=n, other=other):
            x = x.clone()
            x[:, n - 2 : n] = other["resid_pre", 1][:, n - 2 : n]
            return x

        def z(x, n=n, other=other):
            x = x.clone()
            for head in (1, 3):
                part = slice(head * D_HEAD, (head + 1) * D_HEAD)
                x[:, :n, part] = other["z", 2].flatten(-2)[:, :n, part]
            return x

        changes = [
            (*hooks.place(family, 1, "resid_pre"), residual),
            (*hooks.place(family, 2, "z"), z),
        ]
        (expected,) = hooks.greedy(oracle.module, [corrupted], changes, n=6)
        (plain,) = hooks.greedy(oracle.module, [corrupted], [], n=6)
        said = found["completion"].sel(intervention="patch").values[k]
        assert said == model.decode(expected)
        assert found["completion"].sel(intervention="harmless").values[k] == model.decode(plain)
        changed += expected != plain
    assert changed, "the patch is invisible in the tokens, so the test shows nothing"
