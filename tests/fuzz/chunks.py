"""Other values in a chunk of an array, with the checksums that belong to them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zstandard

_TYPES = {"bool": "?", "int64": "<i8", "float32": "<f4", "float64": "<f8"}


def rewrite(array: Path, chunk: int, at: int, value: Any) -> None:
    """Put a value at one place of a chunk of an array, or at every one.

    Parameters
    ----------
    array : Path
        Its folder.
    chunk : int
        Which of its chunks; the index wraps around.
    at : int
        Place in the chunk, which wraps around; negative: everywhere.
    value
        As the array's type takes it; a text for texts.
    """
    meta = json.loads((array / "zarr.json").read_bytes())
    chunks = sorted(p for p in (array / "c").rglob("*") if p.is_file())
    file = chunks[chunk % len(chunks)]
    packed = any(codec["name"] == "zstd" for codec in meta["codecs"])
    content = file.read_bytes()[:-4]
    if packed:
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    kind = meta["data_type"]
    content = (
        _texts(content, at, str(value)) if kind == "string" else _plain(content, kind, at, value)
    )
    if packed:
        content = zstandard.ZstdCompressor().compress(content)
    file.write_bytes(content + struct.pack("<I", google_crc32c.value(content)))


def _plain(content: bytes, kind: str, at: int, value: Any) -> bytes:
    values = np.frombuffer(content, dtype=_TYPES[kind]).copy()
    with np.errstate(all="ignore"):
        where: Any = slice(None) if at < 0 else at % len(values)
        values[where] = value
    return values.tobytes()


def _texts(content: bytes, at: int, value: str) -> bytes:
    (n,) = struct.unpack_from("<I", content)
    texts, place = [], 4
    for _ in range(n):
        (size,) = struct.unpack_from("<I", content, place)
        texts.append(content[place + 4 : place + 4 + size])
        place += 4 + size
    new = value.encode("utf-8", "surrogatepass")
    texts = [new] * n if at < 0 else [new if i == at % n else t for i, t in enumerate(texts)]
    return struct.pack("<I", n) + b"".join(struct.pack("<I", len(t)) + t for t in texts)
