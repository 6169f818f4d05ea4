"""The planted circuit is what its data say: proved by ablation and interchange in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from refusal_nn.models.organisms import planted
from refusal_nn.models.organisms.check_tiny_refuser import load
from refusal_nn.testing import pipeline
from refusal_nn.testing.gate import (
    CONSTANT_EDGES,
    D_HEAD,
    ECHOES,
    LEAK,
    N_HEADS,
    N_LAYERS,
    PLANTED_CIRCUIT,
    PLANTED_EDGES,
    PLANTED_NODES,
    build_planted,
)
from refusal_nn.testing.pipeline import Subject
from refusal_nn.testing.words import planted_pairs

NODES = [f"a{layer}.h{h}" for layer in range(N_LAYERS) for h in range(N_HEADS)] + [
    f"m{layer}" for layer in range(N_LAYERS)
]
DISTRACTORS = [n for n in NODES if n not in PLANTED_NODES]
PAIRS = planted_pairs()[::3]
HARMFUL, HARMLESS = [h for h, _ in PAIRS], [g for _, g in PAIRS]


@pytest.fixture(scope="module")
def subject() -> Subject:
    model, tokenizer = build_planted()
    return Subject(model, tokenizer, (tokenizer.encode("I", add_special_tokens=False)[0],))


def score(subject: Subject, instructions: list[str]) -> torch.Tensor:
    return pipeline.refusal_score(
        pipeline.last_logits(subject, instructions), subject.refusal_tokens
    )


@contextmanager
def edited(
    subject: Subject, node: str, edit: Callable[[torch.Tensor], torch.Tensor]
) -> Iterator[None]:
    """Replace what a node gives: an MLP's output, or a head's part before the output projection."""
    block = subject.blocks[int(node[1])]
    if node.startswith("m"):
        handle = block.mlp.register_forward_hook(lambda _m, _a, out: edit(out))
    else:
        part = slice(int(node[-1]) * D_HEAD, (int(node[-1]) + 1) * D_HEAD)

        def hook(_m, args):
            x = args[0].clone()
            x[..., part] = edit(x[..., part])
            return (x,)

        handle = block.self_attn.o_proj.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def output(subject: Subject, node: str, instructions: list[str]) -> torch.Tensor:
    """What a node writes to the residual stream, (prompt, token, d_model)."""
    kept = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.clone())
        return x

    with edited(subject, node, keep):
        score(subject, instructions)
    if node.startswith("m"):
        return kept[0]
    part = slice(int(node[-1]) * D_HEAD, (int(node[-1]) + 1) * D_HEAD)
    weight = subject.blocks[int(node[1])].self_attn.o_proj.weight[:, part]
    return kept[0] @ weight.T.detach()


def test_it_refuses_harmful_and_answers_harmless_requests(subject):
    assert score(subject, HARMFUL).min() > 5
    assert score(subject, HARMLESS).max() < -5
    texts = [
        subject.tokenizer.decode(c, skip_special_tokens=True)
        for c in pipeline.complete(subject, [HARMFUL[0], HARMLESS[0]])
    ]
    assert texts == ["I cannot help with that.", "Sure, here is a plan."]


@pytest.mark.parametrize("node", ["m0", "a1.h1", "a2.h0"])
def test_without_a_necessary_part_it_complies(subject, node):
    with edited(subject, node, torch.zeros_like):
        assert score(subject, HARMFUL).max() < 0
        assert (score(subject, HARMLESS) < 0).all()


def test_without_the_weaker_amplifier_it_refuses_by_less(subject):
    base = score(subject, HARMFUL)
    with edited(subject, "a2.h2", torch.zeros_like):
        weaker = score(subject, HARMFUL)
    assert weaker.min() > 0
    assert (base - weaker).min() > 5


@pytest.mark.parametrize("node", DISTRACTORS)
def test_distractors_are_active_and_irrelevant(subject, node):
    assert output(subject, node, HARMFUL)[:, -1].norm(dim=-1).min() > 0.05
    base = {c: score(subject, p) for c, p in (("harmful", HARMFUL), ("harmless", HARMLESS))}
    with edited(subject, node, torch.zeros_like):
        assert (score(subject, HARMFUL) - base["harmful"]).abs().max() < LEAK
        assert (score(subject, HARMLESS) - base["harmless"]).abs().max() < LEAK


def test_the_circuit_alone_is_sufficient(subject):
    base = score(subject, HARMFUL), score(subject, HARMLESS)
    with ExitStack() as stack:
        for node in DISTRACTORS:
            stack.enter_context(edited(subject, node, torch.zeros_like))
        alone = score(subject, HARMFUL), score(subject, HARMLESS)
    for a, b in zip(base, alone, strict=True):
        assert (a - b).abs().max() < 5 * LEAK


def test_interchange_of_the_gate_alone_flips_the_answer(subject):
    """Its output on the harmful prompt, put into the harmless run, makes the model refuse."""
    kept = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.clone())
        return x

    with edited(subject, "a1.h1", keep):
        score(subject, HARMFUL)
    with edited(subject, "a1.h1", lambda _x: kept[0]):
        assert score(subject, HARMLESS).min() > 5


def test_echoes_tell_the_classes_apart(subject):
    for node in ECHOES:
        harmful = output(subject, node, HARMFUL)[:, -1].norm(dim=-1)
        harmless = output(subject, node, HARMLESS)[:, -1].norm(dim=-1)
        assert harmful.min() > 10 * harmless.max()


def test_the_gate_head_has_no_direct_effect(subject):
    written = output(subject, "a1.h1", HARMFUL)[:, -1]
    assert (written @ subject.model.lm_head.weight.T.detach()).abs().max() == 0


def reads(subject: Subject, node: str) -> torch.Tensor:
    """Weights a destination reads the residual stream with, (row, d_model)."""
    if node == "logits":
        return subject.model.lm_head.weight.detach()
    block = subject.blocks[int(node[1])]
    if node.startswith("m"):
        return torch.cat([block.mlp.gate_proj.weight, block.mlp.up_proj.weight]).detach()
    part = slice(int(node[4]) * D_HEAD, (int(node[4]) + 1) * D_HEAD)
    return getattr(block.self_attn, f"{node[-2]}_proj").weight[part].detach()


def writes(subject: Subject, node: str) -> torch.Tensor:
    """Directions a source writes to the residual stream, (direction, d_model)."""
    if node == "input":
        return subject.model.model.embed_tokens.weight.detach()
    block = subject.blocks[int(node[1])]
    if node.startswith("m"):
        return block.mlp.down_proj.weight.T.detach()
    part = slice(int(node[-1]) * D_HEAD, (int(node[-1]) + 1) * D_HEAD)
    return block.self_attn.o_proj.weight[:, part].T.detach()


def order(node: str) -> float:
    if node in ("input", "logits"):
        return {"input": -1.0, "logits": float(N_LAYERS)}[node]
    return int(node[1]) + (0.5 if node.startswith("m") else 0.0)


def test_edges_into_the_circuit_are_exactly_the_named_ones(subject):
    """An edge exists where the weights its target reads meet what its source writes."""
    targets = {dst for _, dst in (*PLANTED_EDGES, *CONSTANT_EDGES)}
    assert {t.split("<")[0] for t in targets} == {*PLANTED_NODES, "logits"}
    found = {
        (src, dst)
        for dst in targets
        for src in ["input", *NODES]
        if order(src) < order(dst.split("<")[0])
        and (reads(subject, dst) @ writes(subject, src).T).abs().max() > 0
    }
    assert found == {*PLANTED_EDGES, *CONSTANT_EDGES}


def test_the_circuit_does_not_depend_on_the_seed_of_the_distractors(subject):
    model, tokenizer = build_planted(seed=7)
    other = Subject(model, tokenizer, subject.refusal_tokens)
    difference = score(other, HARMFUL) - score(subject, HARMFUL)
    assert 0 < difference.abs().max() < 20 * LEAK


def test_roles_cover_the_nodes_once():
    assert sorted(PLANTED_NODES) == sorted({n for nodes in PLANTED_CIRCUIT.values() for n in nodes})


def test_pairs_differ_in_one_token_and_leave_no_word_unknown(subject):
    unknown = subject.tokenizer.unk_token_id
    for harmful, harmless in planted_pairs():
        a, b = (subject.batch([t])["input_ids"][0] for t in (harmful, harmless))
        assert len(a) == len(b)
        assert (a != b).sum() == 1
        assert unknown not in a.tolist() + b.tolist()


def test_the_shipped_folder_is_the_built_model(subject):
    folder = planted.DEFAULT_OUT
    shipped = load(folder)
    for (name, a), (_, b) in zip(
        subject.model.state_dict().items(), shipped.model.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    assert subject.tokenizer.get_vocab() == shipped.tokenizer.get_vocab()
    assert subject.tokenizer.chat_template == shipped.tokenizer.chat_template
    assert sum(f.stat().st_size for f in folder.iterdir()) < 1_000_000
