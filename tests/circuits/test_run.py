"""Circuit runs against a run built edge by edge in plain PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusal_nn.attribution import EdgeGraph
from refusal_nn.circuits import _requests
from refusal_nn.circuits._requests import ask_sources, circuit_edits
from refusal_nn.testing import FAMILIES, CircuitRuns, plain_module, tiny_model
from refusal_nn.tracing import Capture, Work, forward_request, pad, run

LENGTHS = (9, 7, 8)


class Read:
    """Reads the last logits, whatever side the padding is on."""

    def __init__(self, side: str) -> None:
        self.side = side

    def readout(self, _model):
        return Capture("readout", "logits", positions=(-1,))

    def reads_after(self, model):
        return model.n_layers


LOG_PROBS = [Capture("value", "logits", positions=(-1,), reduce="log_probs")]
# eager attention in float64 gives NaN at padding, and Gemma 2 has no other
PADDED = torch.float32
# transformers' RMSNorms compute in float32 whatever the dtype, LayerNorms do not
TOLERANCE = {"gpt2": 1e-9, "neox": 1e-9, "neox_sequential": 1e-9, "phi": 1e-9}


def rows(seed: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(7, 97, n).tolist() for n in lengths]


def some_circuits(graph: EdgeGraph, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    random = [graph.mask & (rng.random(graph.mask.shape) < p) for p in (0.1, 0.5, 0.9)]
    return np.stack([graph.mask, np.zeros_like(graph.mask), *random])


def ask_circuits(work, graph, batch, kept, read, ablated):
    model = work.model
    edits = circuit_edits(model, graph, batch, kept, read.reads_after(model), ablated=ablated)
    work.forward(batch.repeat(len(kept)), [read.readout(model)], edits)


def measured(family: str, dtype, kept, clean, corrupted, *, ablated="corrupted", side="left"):
    model = tiny_model(family, dtype)
    graph = EdgeGraph.of(model.arch)
    batch = pad(clean, 0, padding_side=side)
    work = Work(model)
    if ablated == "corrupted":
        ablated = ask_sources(work, pad(corrupted, 0, padding_side=side))
    ask_circuits(work, graph, batch, kept, Read(side), ablated)
    out = run(model, work.requests)[-1]["readout"][:, 0].double().log_softmax(-1)
    return out.unflatten(0, (len(kept), len(clean)))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    assert (a - b).abs().max() <= tolerance, (a - b).abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_run_built_edge_by_edge(family):
    reference = CircuitRuns(family, plain_module(family, torch.float64))
    graph = EdgeGraph.of(tiny_model(family, torch.float64).arch)
    kept = some_circuits(graph)
    # one length: no padding, so that every family runs in float64
    clean, corrupted = rows(1, (8, 8)), rows(2, (8, 8))
    found = measured(family, torch.float64, kept, clean, corrupted)
    for n in range(2):
        _, ablated = reference.run(corrupted[n])
        for c, mask in enumerate(kept):
            names = {(graph.src[s], graph.dst[d]) for s, d in np.argwhere(mask)}
            logits, _ = reference.run(clean[n], lambda s, d, names=names: (s, d) in names, ablated)
            close(found[c, n], logits.double().log_softmax(-1), TOLERANCE.get(family, 1e-6))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_circuit_is_the_model_and_the_empty_one_the_corrupted_run(family):
    model = tiny_model(family)
    graph = EdgeGraph.of(model.arch)
    clean, corrupted = rows(1), rows(2)
    found = measured(family, PADDED, some_circuits(graph), clean, corrupted)
    plain = run(model, [forward_request(model, pad(r, 0), LOG_PROBS) for r in (clean, corrupted)])
    close(found[0], plain[0]["value"], 1e-6 * 5)
    close(found[1], plain[1]["value"], 1e-6 * 5)
    assert (found[2] - found[0]).abs().max() > 0.1  # the others are something else


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2"])
def test_zero_ablation_is_the_run_built_edge_by_edge(family):
    reference = CircuitRuns(family, plain_module(family, torch.float64))
    graph = EdgeGraph.of(tiny_model(family, torch.float64).arch)
    kept = some_circuits(graph)[2:]
    clean = rows(3, (8,))
    found = measured(family, torch.float64, kept, clean, None, ablated=None)
    _, values = reference.run(clean[0])
    zero = {name: torch.zeros_like(value) for name, value in values.items()}
    for c, mask in enumerate(kept):
        names = {(graph.src[s], graph.dst[d]) for s, d in np.argwhere(mask)}
        logits, _ = reference.run(clean[0], lambda s, d, names=names: (s, d) in names, zero)
        close(found[c, 0], logits.double().log_softmax(-1), TOLERANCE.get(family, 1e-6))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_it_depends_neither_on_batch_nor_on_padding_side(family):
    graph = EdgeGraph.of(tiny_model(family).arch)
    kept = some_circuits(graph)[1:]
    clean, corrupted = rows(1), rows(2)
    together = measured(family, PADDED, kept, clean, corrupted)
    right = measured(family, PADDED, kept, clean, corrupted, side="right")
    alone = torch.stack(
        [
            torch.stack(
                [
                    measured(family, PADDED, mask[None], [a], [b])[0, 0]
                    for a, b in zip(clean, corrupted, strict=True)
                ]
            )
            for mask in kept
        ]
    )
    close(together, right, 2e-5)
    close(together, alone, 2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_values_do_not_depend_on_what_is_kept_in_memory(family, monkeypatch):
    graph = EdgeGraph.of(tiny_model(family, torch.float64).arch)
    kept = some_circuits(graph)
    clean, corrupted = rows(1, (8, 8)), rows(2, (8, 8))
    cached = measured(family, torch.float64, kept, clean, corrupted)
    monkeypatch.setattr(_requests, "_CACHE_BYTES", 0)
    close(measured(family, torch.float64, kept, clean, corrupted), cached, 1e-12)


def test_it_runs_where_this_package_is_not_installed():
    local, dry = tiny_model("llama"), tiny_model("llama", backend="dry-run")
    graph = EdgeGraph.of(local.arch)
    kept = some_circuits(graph)
    batch, corrupted = pad(rows(1), 0), pad(rows(2), 0)
    found = []
    for model in (local, dry):
        work = Work(model)
        sources = ask_sources(work, corrupted)
        ask_circuits(work, graph, batch, kept, Read("left"), sources)
        found.append(run(model, work.requests)[1]["readout"])
    assert torch.equal(*found)
