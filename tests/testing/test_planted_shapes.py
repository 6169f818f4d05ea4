"""The planted circuits are what their data say: proved edge by edge in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_nn.testing import CircuitRuns
from refusal_nn.testing.shapes import (
    D_HEAD,
    N_HEADS,
    N_LAYERS,
    REFUSAL_TOKEN,
    SHAPES,
    PlantedShape,
)
from refusal_nn.testing.words import planted_pairs

FAMILY = {"chain": "gpt2", "either": "llama", "both": "llama"}
PAIRS = planted_pairs()[::17]
LEAK = 0.01
"""What an edge outside the circuit may change of the score, nats (of about 20)."""


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest) -> PlantedShape:
    return SHAPES[request.param]()


def ids(shape: PlantedShape, text: str) -> list[int]:
    return shape.tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True
    )["input_ids"]


def score(shape: PlantedShape, logits: torch.Tensor) -> float:
    p = logits.double().softmax(-1)[shape.tokenizer.get_vocab()[REFUSAL_TOKEN]]
    return float(torch.log(p) - torch.log1p(-p))


def every_edge(reference: CircuitRuns) -> list[tuple[str, str]]:
    """By the definition: a writer before a reader, heads of a layer before its MLP."""
    writers, edges = ["input"], []
    for layer in range(N_LAYERS):
        counts = {"q": reference.heads, "k": reference.kv, "v": reference.kv}
        readers = [f"a{layer}.h{h}<{part}>" for part, n in counts.items() for h in range(n)]
        edges += [(src, dst) for dst in readers for src in writers]
        writers += [f"a{layer}.h{h}" for h in range(N_HEADS)]
        edges += [(src, f"m{layer}") for src in writers]
        writers.append(f"m{layer}")
    return edges + [(src, "logits") for src in writers]


def test_it_refuses_harmful_and_answers_harmless_requests(shape):
    reference = CircuitRuns(FAMILY[shape.name], shape.model)
    for clean, corrupted in PAIRS:
        assert score(shape, reference.run(ids(shape, clean))[0]) > 5
        assert score(shape, reference.run(ids(shape, corrupted))[0]) < -5


def test_each_planted_edge_matters_and_no_other_does(shape):
    """One edge at a time carries the harmless prompt's value."""
    reference = CircuitRuns(FAMILY[shape.name], shape.model)
    clean, corrupted = (ids(shape, text) for text in PAIRS[1])
    whole = score(shape, reference.run(clean)[0])
    ablated = reference.run(corrupted)[1]
    effects = {}
    for edge in every_edge(reference):
        logits, _ = reference.run(clean, lambda s, d, edge=edge: (s, d) != edge, ablated)
        effects[edge] = whole - score(shape, logits)
    planted = {edge: effects.pop(edge) for edge in shape.edges}
    assert min(planted.values()) > 1
    assert max(map(abs, effects.values())) < LEAK


def test_the_circuit_alone_does_what_the_model_does(shape):
    reference = CircuitRuns(FAMILY[shape.name], shape.model)
    kept = set(shape.edges)
    for texts in PAIRS:
        clean, corrupted = (ids(shape, text) for text in texts)
        ablated = reference.run(corrupted)[1]
        alone, _ = reference.run(clean, lambda s, d: (s, d) in kept, ablated)
        assert score(shape, alone) == pytest.approx(
            score(shape, reference.run(clean)[0]), abs=5 * LEAK
        )


def test_every_distractor_is_active(shape):
    reference = CircuitRuns(FAMILY[shape.name], shape.model)
    values = reference.run(ids(shape, PAIRS[0][0]))[1]
    assert min(float(v[1:].norm(dim=-1).max()) for v in values.values()) > 0.05


def test_some_distractors_tell_the_classes_apart(shape):
    """Activity that goes with the class is no evidence of a cause: these do, and change nothing."""
    reference = CircuitRuns(FAMILY[shape.name], shape.model)
    clean, corrupted = (ids(shape, text) for text in PAIRS[0])
    a, b = reference.run(clean)[1], reference.run(corrupted)[1]
    inside = {src for src, _ in shape.edges}
    differ = [n for n in a if n not in inside and float((a[n] - b[n])[-1].norm()) > 0.01]
    assert differ


def test_the_circuit_does_not_depend_on_the_seed_of_the_distractors(shape):
    other = SHAPES[shape.name](seed=7)
    found = []
    for s in (shape, other):
        reference = CircuitRuns(FAMILY[s.name], s.model)
        found.append([score(s, reference.run(ids(s, text))[0]) for pair in PAIRS for text in pair])
    assert np.allclose(*found, atol=20 * LEAK)
    assert not np.array_equal(*found)


def test_shapes_are_of_different_architecture():
    models = {name: build().model for name, build in SHAPES.items()}
    assert type(models["chain"]).__name__ == "GPT2LMHeadModel"
    assert models["both"].config.num_key_value_heads == 2
    assert models["either"].config.num_key_value_heads == N_HEADS
    assert models["both"].config.hidden_size == D_HEAD * N_HEADS
