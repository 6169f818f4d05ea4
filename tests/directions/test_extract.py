from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_nn.directions import discover_refusal_tokens, extract, parse_tokens
from refusal_nn.errors import RequestError, WorkError
from refusal_nn.models import Model
from refusal_nn.prompts import Prompts
from refusal_nn.testing import plain_module
from tests.directions.conftest import TOKENS


def block_inputs(model: Model, text: str) -> np.ndarray:
    """Residual stream at each block's input, ``[layer, token, d]``, by plain hooks, one prompt."""
    module = plain_module("llama")
    found: list[torch.Tensor] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: found.append(args[0][0].detach()))
        for block in module.model.layers
    ]
    ids = torch.tensor([model.chat.tokens([text])[0]])
    with torch.no_grad():
        module(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return torch.stack(found).double().numpy()


def test_direction_is_the_difference_of_the_class_means(model: Model, prompts: Prompts) -> None:
    found = extract(model, prompts.train, refusal_tokens=TOKENS, screen=False, batch_size=4)
    n = len(model.chat.positions)
    means = {}
    for harm in ("harmful", "harmless"):
        texts = prompts.train.select(harm=harm).texts
        means[harm] = np.mean([block_inputs(model, t)[:, -n:] for t in texts], axis=0)
    expected = (means["harmful"] - means["harmless"]).swapaxes(0, 1)
    np.testing.assert_allclose(found["direction"].values, expected, atol=1e-6)
    np.testing.assert_allclose(
        found["direction_norm"].values, np.linalg.norm(expected, axis=-1), atol=1e-6
    )
    np.testing.assert_allclose(
        found["mean_harmless"].values, means["harmless"].swapaxes(0, 1), atol=1e-6
    )
    assert found["direction"].dims == ("position", "layer", "d_model")


def test_embedding_directions_are_zero_because_the_span_is_the_same(
    model: Model, prompts: Prompts
) -> None:
    found = extract(model, prompts.train, refusal_tokens=TOKENS, screen=False)
    assert float(found["direction_norm"].sel(layer=0).max()) < 1e-12


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_does_not_matter(model: Model, prompts: Prompts, batch_size: int) -> None:
    whole = extract(model, prompts.train, refusal_tokens=TOKENS, screen=False)
    found = extract(
        model, prompts.train, refusal_tokens=TOKENS, screen=False, batch_size=batch_size
    )
    np.testing.assert_allclose(found["direction"], whole["direction"], atol=1e-6)


def test_order_of_prompts_does_not_matter(model: Model, prompts: Prompts) -> None:
    train = prompts.train
    order = np.random.default_rng(1).permutation(len(train))
    whole = extract(model, train, refusal_tokens=TOKENS, screen=False)
    found = extract(model, train[order], refusal_tokens=TOKENS, screen=False, batch_size=4)
    np.testing.assert_allclose(found["direction"], whole["direction"], atol=1e-6)
    np.testing.assert_allclose(
        found["refusal_score"], whole["refusal_score"].values[order], atol=1e-5
    )


def test_screening_keeps_what_the_model_treats_as_labelled(model: Model, prompts: Prompts) -> None:
    everything = extract(model, prompts.train, refusal_tokens=TOKENS, screen=False)
    scores = everything["refusal_score"].values
    # tokens whose class straddles zero: the complement of the vocabulary's other half
    harmful = everything["harm"].values == "harmful"
    with pytest.raises(WorkError, match="screening left no harmful prompts"):
        extract(model, prompts.train, refusal_tokens=TOKENS)
    most = [t for t in range(97) if t not in TOKENS]
    with pytest.raises(WorkError, match="screening left no harmless prompts"):
        extract(model, prompts.train, refusal_tokens=most)
    assert (scores < 0).all()
    assert harmful.sum() == 9


def test_screened_mean_uses_the_kept_prompts_alone(model: Model, prompts: Prompts) -> None:
    tokens = list(range(7, 60))
    try:
        found = extract(model, prompts.train, refusal_tokens=tokens)
    except WorkError:
        pytest.fail("choose tokens whose log-odds straddle zero on these prompts")
    kept = found["kept"].values
    harmful = found["harm"].values == "harmful"
    scores = found["refusal_score"].values
    np.testing.assert_array_equal(kept, np.where(harmful, scores > 0, scores < 0))
    assert 0 < kept.sum() < len(kept)
    chosen = prompts.train[np.flatnonzero(kept)]
    again = extract(model, chosen, refusal_tokens=tokens, screen=False)
    np.testing.assert_allclose(found["direction"], again["direction"], atol=1e-9)


def test_one_class_alone_is_refused(model: Model, prompts: Prompts) -> None:
    with pytest.raises(RequestError, match="hold no harmless prompts"):
        extract(model, prompts.train.harmful, refusal_tokens=TOKENS)


def test_unknown_method_is_refused(model: Model, prompts: Prompts) -> None:
    with pytest.raises(RequestError, match="methods are difference-in-means"):
        extract(model, prompts.train, method="pca", refusal_tokens=TOKENS)


def test_a_model_that_never_refuses_has_no_refusal_tokens(model: Model, prompts: Prompts) -> None:
    with pytest.raises(WorkError, match="refused none of 9 harmful prompts"):
        discover_refusal_tokens(model, prompts.train)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("w7 w8", "is 2 tokens"),
        ([97], "outside the vocabulary"),
        ([], "no refusal token"),
        ("w7,99", "outside the vocabulary"),
        ([1.5], "1.5 is neither a text nor a whole number"),
        ([True], "True is neither"),
    ],
)
def test_bad_refusal_tokens_are_refused(model: Model, given: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_tokens(model, given)  # type: ignore[arg-type]


def test_refusal_tokens_are_texts_or_ids(model: Model) -> None:
    assert parse_tokens(model, "w7,8") == [7, 8]
    assert parse_tokens(model, None) is None


def test_a_digit_that_is_no_number_is_a_text(model: Model) -> None:
    with pytest.raises(RequestError, match="'²' is not in the vocabulary"):
        parse_tokens(model, "²")


@pytest.mark.parametrize("positions", [[-99], [0], [], [-1, -1], [-1.5], "-1"], ids=str)
def test_bad_positions_are_refused_before_anything_is_computed(
    model: Model, prompts: Prompts, positions: object
) -> None:
    class Untouched:
        def stage(self, *args: object) -> None:
            pytest.fail("a stage was begun")

    with pytest.raises(RequestError, match=r"position"):
        extract(
            model,
            prompts.train,
            positions=positions,  # type: ignore[arg-type]
            refusal_tokens=TOKENS,
            recorder=Untouched(),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("batch_size", [0, -5])
def test_a_batch_size_below_one_is_refused(model: Model, prompts: Prompts, batch_size: int) -> None:
    with pytest.raises(RequestError, match=f"batch size must be at least 1, got {batch_size}"):
        extract(model, prompts.train, refusal_tokens=TOKENS, batch_size=batch_size)
