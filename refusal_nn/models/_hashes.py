"""What tells two models apart without a path: hashes of their weights and of their tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_HASH_LIMIT = 2_000_000_000


def weights_hash(source: str, revision: str | None) -> str:
    """16 hex digits that identify the weights: of the files where they are at hand and not huge."""
    folder = Path(source)
    digest = hashlib.sha256()
    if not folder.is_dir():
        digest.update(f"{source}@{revision}".encode())
        return digest.hexdigest()[:16]
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    for file in [folder / "config.json", *files]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as stream:
            if size <= _HASH_LIMIT:
                while chunk := stream.read(1 << 24):
                    digest.update(chunk)
            else:  # header and ends: hashing 140 GB would take longer than most runs
                digest.update(stream.read(1 << 24))
                stream.seek(-(1 << 24), 2)
                digest.update(stream.read())
    return digest.hexdigest()[:16]


def tokenizer_hash(tokenizer: Any, eos_tokens: Sequence[int]) -> str:
    """16 hex digits of all that decides which tokens a text is, and where a completion ends."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        for state in ("padding", "truncation"):  # of the last call, and not used here
            rules.pop(state, None)
    else:
        rules = {
            "class": type(tokenizer).__name__,
            "vocabulary": sorted(tokenizer.get_vocab().items()),
            "added": {int(i): str(t) for i, t in tokenizer.added_tokens_decoder.items()},
        }
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    cleaned = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
    content = json.dumps([rules, special, cleaned, sorted(eos_tokens)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
