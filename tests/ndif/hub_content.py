"""What the loopback hub serves: the embedded models, a second revision, and one too large to deploy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

ORGANISMS = Path(__file__).resolve().parents[2] / "refusal_nn" / "models" / "organisms"
ORGANISATION = "refusal-nn"
EARLIER = "earlier"
ONE_BILLION = "one-billion"

# The shape of a 1B Llama. In float32 with the server's 15 % margin it needs 5.7 GB, more than the
# stack declares, so the server refuses to deploy it; the client builds it without weights.
_BILLION = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}


def fill(root: Path) -> list[str]:
    """Lay out the repositories under ``root``.

    Returns
    -------
    list of str
        Their ids. Every embedded model is there by its name; ``tiny-refuser`` has a second revision,
        ``earlier``, with the same weights; ``one-billion`` has a config and a tokenizer but no
        weights, and its index says how many parameters they would hold.
    """
    home = root / ORGANISATION
    names = sorted(path.parent.name for path in ORGANISMS.glob("*/config.json"))
    for name in names:
        shutil.copytree(ORGANISMS / name, home / name)
    earlier = home / f"tiny-refuser@{EARLIER}"
    shutil.copytree(home / "tiny-refuser", earlier)
    (earlier / "README.md").write_text("An earlier revision.\n", encoding="utf-8")
    _without_weights(home / "tiny-refuser", home / ONE_BILLION)
    return [f"{ORGANISATION}/{name}" for name in (*names, ONE_BILLION)]


def _without_weights(source: Path, target: Path) -> None:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, **_BILLION}), encoding="utf-8")
    index = {"metadata": {"total_parameters": _llama_parameters(_BILLION)}, "weight_map": {}}
    text = json.dumps(index)
    (target / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _llama_parameters(shape: dict[str, int]) -> int:
    """Parameters of a Llama with tied embeddings."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    layer = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
    return shape["vocab_size"] * width + shape["num_hidden_layers"] * layer + width
