from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import xarray as xr

from refusal_nn.directions import admissible, extract, score, select
from refusal_nn.errors import PromptError, RequestError
from refusal_nn.models import Model
from refusal_nn.prompts import Prompts
from refusal_nn.shipped.reductions import smoothed_kl, smoothed_kl_slack
from refusal_nn.testing import plain_module, tiny_model
from tests.directions.conftest import TOKENS, made_prompts


@cache
def candidates() -> xr.Dataset:
    return extract(tiny_model("llama"), made_prompts().train, refusal_tokens=TOKENS, screen=False)


@cache
def table(batch_size: int | None = None) -> xr.Dataset:
    return score(
        tiny_model("llama"),
        candidates(),
        made_prompts().val,
        exhaustive=True,
        screen=False,
        batch_size=batch_size,
    )


def last_logits(model: Model, text: str, vector: torch.Tensor, layer: int | None) -> torch.Tensor:
    """Last-token logits of one prompt, by plain hooks: ablated everywhere, or added at a layer."""
    module = plain_module("llama")
    unit = vector / (vector.norm() + 1e-8)

    def ablate(x: torch.Tensor) -> torch.Tensor:
        return x - (x @ unit)[..., None] * unit

    hooks = []
    for i, block in enumerate(module.model.layers):
        if layer is None:
            hooks += [
                block.register_forward_pre_hook(lambda _, a: (ablate(a[0]), *a[1:])),
                block.self_attn.register_forward_hook(lambda _, __, o: (ablate(o[0]), *o[1:])),
                block.mlp.register_forward_hook(lambda _, __, o: ablate(o)),
            ]
        elif i == layer:
            hooks.append(block.register_forward_pre_hook(lambda _, a: (a[0] + vector, *a[1:])))
    with torch.no_grad():
        out = module(input_ids=torch.tensor([model.chat.tokens([text])[0]])).logits[0, -1].double()
    for hook in hooks:
        hook.remove()
    return out


def log_odds(logits: torch.Tensor) -> float:
    p = torch.softmax(logits, -1)[TOKENS].sum()
    return float(torch.log(p + 1e-8) - torch.log(1 - p + 1e-8))


def test_full_table_equals_three_serial_loops_over_plain_hooks(
    model: Model, prompts: Prompts
) -> None:
    """The published form: one pass per candidate, metric and prompt."""
    found, val = table(), prompts.val
    zero = torch.zeros(model.d_model)
    base = {t: torch.softmax(last_logits(model, t, zero, None), -1) for t in val.harmless.texts}
    for position in found["position"].values:
        for layer in found["layer"].values:
            at = {"position": position, "layer": layer}
            vector = torch.tensor(candidates()["direction"].sel(at).values, dtype=torch.float32)
            bypass = np.mean(
                [log_odds(last_logits(model, t, vector, None)) for t in val.harmful.texts]
            )
            induce = np.mean(
                [log_odds(last_logits(model, t, vector, int(layer))) for t in val.harmless.texts]
            )
            divergences = []
            for text in val.harmless.texts:
                p = torch.softmax(last_logits(model, text, vector, None), -1)
                q = base[text]
                divergences.append(float((q * ((q + 1e-6).log() - (p + 1e-6).log())).sum()))
            assert float(found["bypass"].sel(at)) == pytest.approx(bypass, abs=1e-5)
            assert float(found["induce"].sel(at)) == pytest.approx(induce, abs=1e-5)
            assert float(found["kl"].sel(at)) == pytest.approx(np.mean(divergences), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batch_size_does_not_matter(batch_size: int) -> None:
    for name in ("bypass", "induce", "kl", "bypass_per_prompt", "kl_per_prompt"):
        np.testing.assert_allclose(table(batch_size)[name], table()[name], atol=1e-5)


@pytest.mark.parametrize("order", [[2, 1, 0], [1, 2, 0]])
def test_the_order_of_layers_does_not_matter(
    model: Model, prompts: Prompts, order: list[int]
) -> None:
    mixed = candidates().isel(layer=order)
    found = score(model, mixed, prompts.val, exhaustive=True, screen=False)
    assert found["layer"].values.tolist() == [0, 1, 2]
    for name in ("bypass", "induce", "kl", "induce_per_prompt", "direction"):
        xr.testing.assert_allclose(found[name], table()[name], atol=1e-5)


def test_means_are_those_of_the_prompts_of_their_class() -> None:
    found = table()
    harmful = found["harm"].values == "harmful"
    for name, mask in (("bypass", harmful), ("induce", ~harmful), ("kl", ~harmful)):
        per_prompt = found[f"{name}_per_prompt"].values
        assert np.isnan(per_prompt[..., ~mask]).all()
        np.testing.assert_allclose(per_prompt[..., mask].mean(-1), found[name], atol=1e-12)


@pytest.mark.parametrize("criterion", ["induce", "kl"])
def test_dropping_candidates_changes_no_choice_and_no_score_it_keeps(criterion: str) -> None:
    full = table()
    early = full.isel(layer=slice(0, 2))
    thresholds = {"kl_max": 1e9, "induce_min": -1e9, "layer_fraction": 0.8}
    if criterion == "kl":
        thresholds["kl_max"] = float(early["kl"].quantile(0.6))
    else:
        thresholds["induce_min"] = float(early["induce"].quantile(0.4))
    fast = score(
        tiny_model("llama"),
        candidates(),
        made_prompts().val,
        screen=False,
        batch_size=7,
        **thresholds,
    )
    assert select(fast, **thresholds).layer == select(full, **thresholds).layer
    assert select(fast, **thresholds).position == select(full, **thresholds).position
    stays = admissible(full, **thresholds)["admissible"]
    assert 0 < int(stays.sum()) < early["kl"].size, "thresholds must split the early candidates"
    xr.testing.assert_equal(stays, admissible(fast, **thresholds)["admissible"])
    for name in ("bypass", "induce", "kl"):
        kept = fast[name].where(stays).values
        np.testing.assert_allclose(kept, full[name].where(stays).values, atol=1e-6)
    assert set(np.unique(fast["dropped_by"].values)) == {"", "late layer", criterion}
    assert np.isnan(fast["bypass"].values[fast["dropped_by"].values != ""]).all()


def test_no_candidate_left_is_a_table_without_bypass(model: Model, prompts: Prompts) -> None:
    found = score(model, candidates(), prompts.val, screen=False, induce_min=1e9)
    assert np.isnan(found["bypass"]).all()
    assert select(found).layer is None


def test_slack_bounds_how_negative_a_smoothed_divergence_can_be() -> None:
    """Adversarial search: gradient descent on the smoothed divergence itself."""
    torch.manual_seed(0)
    base = torch.log_softmax(2 * torch.randn(5, 50, dtype=torch.float64), -1)
    logits = base.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([logits], lr=1e-3)
    worst = torch.zeros(5, dtype=torch.float64)
    for _ in range(500):
        values = smoothed_kl(logits, base)
        optimiser.zero_grad()
        values.sum().backward()
        optimiser.step()
        worst = torch.minimum(worst, values.detach())
    assert (worst < 0).all(), "the smoothed sum does go below zero"
    assert (worst >= -smoothed_kl_slack(base)).all()


def test_selection_prompts_must_be_new(model: Model, prompts: Prompts) -> None:
    with pytest.raises(PromptError, match="discovery prompts"):
        score(model, candidates(), prompts.train, screen=False)


def test_candidates_of_another_model_are_refused(prompts: Prompts) -> None:
    wrong = candidates().isel(d_model=slice(0, 16))
    with pytest.raises(RequestError, match="of another model"):
        score(tiny_model("llama"), wrong, prompts.val, screen=False)


def test_a_table_without_directions_is_refused(model: Model, prompts: Prompts) -> None:
    with pytest.raises(RequestError, match="give the result of direction extract"):
        score(model, candidates().drop_vars("direction"), prompts.val)


@pytest.mark.parametrize("dim", ["layer", "position"])
def test_candidates_need_labels(model: Model, prompts: Prompts, dim: str) -> None:
    with pytest.raises(RequestError, match=f"the candidates have no labels for {dim}"):
        score(model, candidates().drop_vars(dim), prompts.val)
    twice = candidates().isel({dim: [0, 0]})
    with pytest.raises(RequestError, match=f"labels of {dim} occur twice in the candidates"):
        score(model, twice, prompts.val)


def test_one_candidate_needs_its_dims(model: Model, prompts: Prompts) -> None:
    with pytest.raises(RequestError, match="no dim 'layer'"):
        score(model, candidates().isel(layer=1), prompts.val)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"batch_size": -5}, "batch size must be at least 1, got -5"),
        ({"kl_max": "a"}, "kl_max is 'a', which is no number"),
        ({"induce_min": float("nan")}, "induce_min is NaN"),
    ],
)
def test_options_that_are_no_numbers_are_refused(
    model: Model, prompts: Prompts, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        score(model, candidates(), prompts.val, **options)  # type: ignore[arg-type]


def test_a_class_without_prompts_is_refused(model: Model, prompts: Prompts) -> None:
    with pytest.raises(RequestError, match="no harmful selection prompts"):
        score(model, candidates(), prompts.val.harmless, screen=False)
