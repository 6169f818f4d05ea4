"""The plain baseline: PyTorch hooks on a transformers GPT-2, nothing of nnsight or refusal_nn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]
Hooks = list[tuple[nn.Module, str, Callable[..., object]]]  # kind: "pre_hook" or "hook"


@contextmanager
def hooked(hooks: Hooks) -> Iterator[None]:
    """With the hooks in place, no gradients."""
    with ExitStack() as stack, torch.no_grad():
        for module, kind, hook in hooks:
            stack.enter_context(getattr(module, f"register_forward_{kind}")(hook))
        yield


def capture(model: nn.Module, inputs: Inputs, positions: list[int]) -> tuple[Tensor, Tensor]:
    """Input of every block at some positions ``[layer, row, position, d]``; last-token logits."""
    taken: list[Tensor] = []

    def take(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        taken.append(args[0][:, positions])

    with hooked([(block, "pre_hook", take) for block in model.transformer.h]):
        hidden = model.transformer(**inputs, use_cache=False).last_hidden_state[:, -1]
        return torch.stack(taken), model.lm_head(hidden)


def ablation(model: nn.Module, direction: Tensor) -> Hooks:
    """Project a direction out of every block's input and every attention and MLP output."""
    unit = direction / (direction.norm() + 1e-8)

    def project(_module: nn.Module, args: tuple[Tensor, ...], *out: object) -> object:
        value = out[0] if out else args
        x = value[0] if isinstance(value, tuple) else value
        x -= (x @ unit).unsqueeze(-1) * unit
        return (x, *value[1:]) if isinstance(value, tuple) else x

    blocks, kinds = model.transformer.h, ("pre_hook", "hook", "hook")
    return [(m, k, project) for b in blocks for m, k in zip((b, b.attn, b.mlp), kinds, strict=True)]


def generate(model: nn.Module, inputs: Inputs, direction: Tensor, **options: object) -> Tensor:
    """Ids generated under ablation at every step."""
    with hooked(ablation(model, direction)):
        return model.generate(**inputs, **options)


def sweep(
    model: nn.Module, harmful: Inputs, harmless: Inputs,
    candidates: Sequence[tuple[int, Tensor]], tokens: list[int],
) -> dict[str, list[float]]:  # fmt: skip
    """The published three loops over (layer, direction): one whole pass each, full logits."""

    def run(inputs: Inputs, hooks: Hooks) -> Tensor:
        with hooked(hooks):
            return model(**inputs, use_cache=False).logits[:, -1].double().softmax(-1)

    def score(p: Tensor) -> float:
        p = p[:, tokens].sum(-1)
        return float((torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)).mean())

    def kl(p: Tensor) -> float:
        return float((base * (torch.log(base + 1e-6) - torch.log(p + 1e-6))).sum(-1).mean())

    def add(layer: int, r: Tensor) -> Hooks:
        return [(model.transformer.h[layer], "pre_hook", lambda _m, x: (x[0] + r, *x[1:]))]

    base = run(harmless, [])
    bypass = [score(run(harmful, ablation(model, r))) for _, r in candidates]
    divergence = [kl(run(harmless, ablation(model, r))) for _, r in candidates]
    induce = [score(run(harmless, add(layer, r))) for layer, r in candidates]
    return {"bypass": bypass, "kl": divergence, "induce": induce}


def integrated_gradients(
    model: nn.Module, clean: Tensor, corrupted: Tensor, tokens: list[int], steps: int
) -> Tensor:
    """Integrated gradient of the refusal log-odds along the embeddings, a row: ``[row]``.

    Two forward passes, and a forward and a backward pass a step, of the frozen model.
    """
    embedding = model.transformer.wte

    def forward(embeds: Tensor) -> Tensor:
        hidden = model.transformer(inputs_embeds=embeds, use_cache=False).last_hidden_state
        p = model.lm_head(hidden[:, -1]).double().softmax(-1)[:, tokens].sum(-1)
        return torch.log(p + 1e-8) - torch.log(1 - p + 1e-8)

    with torch.no_grad():
        start, end = embedding(corrupted), embedding(clean)
        forward(start)
        forward(end)
    total = torch.zeros_like(start)
    for k in range(1, steps + 1):
        embeds = (start + k / steps * (end - start)).requires_grad_(True)
        (gradient,) = torch.autograd.grad(forward(embeds).sum(), embeds)
        total += gradient / steps
    return ((start - end) * total).sum((1, 2))
