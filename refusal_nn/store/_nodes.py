"""The metadata of one zarr group or array, as a stranger may have written them.

What is allowed is what this package writes: plain numbers, booleans and text in regular chunks.
Everything else (objects, pickles, unknown codecs, absurd shapes) is refused before zarr sees it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

ITEM_BYTES = {
    "bool": 1,
    **{f"{kind}{bits}": bits // 8 for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": bits // 8 for bits in (16, 32, 64)},
    "string": 16,
}
"""Bytes in memory of one value, by the kinds that are allowed."""

_MOST_IN_CHUNK = 1 << 30
_MOST_LABELS = 1 << 28
"""Bytes of a dim's labels, which are read as soon as a run is opened."""
_MOST_TEXT = 1 << 28
"""Bytes of the texts in one chunk."""
_MOST_DIMS = 32
_OF_A_GROUP = {"attributes", "zarr_format", "node_type", "consolidated_metadata"}
_KEYS = {"name": "default", "configuration": {"separator": "/"}}


class UnsoundError(ValueError):
    """What is wrong with a node or a chunk; the text goes on from the file's name."""


@dataclass(frozen=True)
class Array:
    """An array, checked.

    Attributes
    ----------
    kind : str
        Of value, a key of :data:`ITEM_BYTES`.
    shape, chunks : tuple of int
    dims : tuple of str
    codecs : tuple of str
        Names, in the order of writing.
    """

    kind: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dims: tuple[str, ...]
    codecs: tuple[str, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of chunks along each dim."""
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunks, strict=True))

    @property
    def chunk_bytes(self) -> int:
        """Of a chunk in memory."""
        return math.prod(self.chunks) * ITEM_BYTES[self.kind]

    def is_chunk(self, key: str) -> bool:
        """Whether a file below the folder ``c`` is one of the chunks."""
        parts = key.split("/") if key else []
        return len(parts) == len(self.grid) and all(
            p.isascii() and p.isdecimal() and str(int(p[:20])) == p and int(p) < n
            for p, n in zip(parts, self.grid, strict=True)
        )

    def check_chunk(self, head: bytes, size: int) -> None:
        """Check what a chunk says it decodes to, from the first bytes of its file and its size.

        Raises
        ------
        UnsoundError
        """
        held = self.chunk_bytes if self.kind != "string" else None
        size -= 4  # crc32c comes last
        if "zstd" in self.codecs:
            said = _zstd_content(head)
        elif "blosc" in self.codecs:
            said = struct.unpack("<I", head[4:8])[0] if len(head) >= 16 else None
        else:
            said = size
        if said is None or size < 0:
            raise UnsoundError("is damaged: it does not begin as its codec writes")
        if said != held if held is not None else said > _MOST_TEXT:
            raise UnsoundError(
                f"is damaged: it says that it holds {said} bytes, where "
                f"{'at most ' if held is None else ''}{held or _MOST_TEXT} belong"
            )
        # codecs add a little where nothing can be made smaller: zstd most, a 256th and its header
        if size > said + said // 128 + 1024:
            raise UnsoundError(
                f"is damaged: its file is larger than the {said} bytes that it says it holds"
            )

    def check_text(self, content: bytes) -> None:
        """Check that a chunk of texts holds as many as belong there, before they are made room for.

        Raises
        ------
        UnsoundError
        """
        held = math.prod(self.chunks)
        count = struct.unpack("<I", content[:4])[0] if len(content) >= 4 else 0
        if count != held or len(content) < 4 + 4 * held:
            raise UnsoundError(
                f"is damaged: it says that it holds {count} texts, where {held} belong"
            )


def checked(node: Any, name: str) -> Array | None:
    """A node, checked: the array, or None for a group.

    Parameters
    ----------
    node : Any
        From JSON.
    name : str
        Of the group or array, without its folders: a dim of that name is labelled by it.

    Raises
    ------
    UnsoundError
    """
    if not isinstance(node, dict):
        raise UnsoundError(f"is a {_json_kind(node)}, where an object belongs")
    if node.get("zarr_format") != 3:
        raise UnsoundError(f"says zarr_format {_short(node.get('zarr_format'))}, where 3 belongs")
    if not isinstance(node.get("attributes", {}), dict):
        raise UnsoundError(f"has a {_json_kind(node['attributes'])} for its attributes")
    coordinates = node.get("attributes", {}).get("coordinates", "")
    if not isinstance(coordinates, str):
        raise UnsoundError(f"has a {_json_kind(coordinates)} for its attribute 'coordinates'")
    if node.get("node_type") == "group":
        if more := sorted(set(node) - _OF_A_GROUP):
            raise UnsoundError(f"is of a group and holds {_short(more[0])}")
        return None
    if node.get("node_type") != "array":
        raise UnsoundError(f"says node_type {_short(node.get('node_type'))}")
    return _array(node, name)


def consolidated(root: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes that a root's consolidated metadata hold, by path.

    Raises
    ------
    UnsoundError
        If there are none, or one's path leads elsewhere than below the root.
    """
    held = root.get("consolidated_metadata")
    if not isinstance(held, dict) or not isinstance(held.get("metadata"), dict):
        raise UnsoundError("holds no consolidated metadata, as a finished run does")
    if held.get("kind") != "inline":
        raise UnsoundError(f"has consolidated metadata of kind {_short(held.get('kind'))}")
    for path in held["metadata"]:
        parts = path.split("/")
        if not path or "\0" in path or any(p in ("", ".", "..") for p in parts):
            raise UnsoundError(f"names a variable {_short(path)}, which is no place in the run")
    return dict(held["metadata"])


def check_dims(arrays: Mapping[str, Array]) -> None:
    """Check that the arrays of each group agree on the lengths of their dims.

    Raises
    ------
    UnsoundError
        Begins with the name of the array.
    """
    lengths: dict[tuple[str, str], tuple[int, str]] = {}
    for path, array in arrays.items():
        group = str(PurePosixPath(path).parent)
        for dim, n in zip(array.dims, array.shape, strict=True):
            known, other = lengths.setdefault((group, dim), (n, path))
            if known != n:
                raise UnsoundError(
                    f"variable {_short(path)} is {n} long along dim {_short(dim)}, and {_short(other)} "
                    f"is {known}"
                )


def decompressed(content: bytes, codecs: Sequence[str]) -> bytes:
    """The bytes of a chunk, without its checksum, as they were before a codec made them fewer.

    Raises
    ------
    UnsoundError
    """
    if "zstd" not in codecs:
        return content
    from numcodecs.zstd import decompress  # type: ignore[import-untyped]

    try:
        return bytes(decompress(content))
    except (RuntimeError, ValueError) as e:
        raise UnsoundError(f"is damaged: {e}") from e


def _array(node: dict[str, Any], name: str) -> Array:
    kind, shape = node.get("data_type"), _lengths(node.get("shape"), 0)
    if not isinstance(kind, str) or kind not in ITEM_BYTES:
        raise UnsoundError(
            f"has data_type {_short(kind)}; numbers, booleans and strings are all that is read"
        )
    if shape is None:
        raise UnsoundError(f"has the shape {_short(node.get('shape'))}")
    grid = node.get("chunk_grid")
    regular = isinstance(grid, dict) and grid.get("name") == "regular"
    settings = grid.get("configuration") if regular and isinstance(grid, dict) else None
    chunks = _lengths(settings.get("chunk_shape"), 1) if isinstance(settings, dict) else None
    if chunks is None or len(chunks) != len(shape):
        raise UnsoundError(f"is of shape {list(shape)} and has the chunk_grid {_short(grid)}")
    dims = node.get("dimension_names")
    if dims is None and not shape:
        dims = []
    if (
        not isinstance(dims, list)
        or len(dims) != len(shape)
        or len({d for d in dims if isinstance(d, str) and d and "/" not in d}) != len(dims)
    ):
        raise UnsoundError(f"is of shape {list(shape)} and has the dimension_names {_short(dims)}")
    if node.get("chunk_key_encoding") != _KEYS or node.get("storage_transformers"):
        raise UnsoundError("names its chunks in a way that is not read")
    found = Array(kind, shape, chunks, tuple(dims), _codecs(node.get("codecs"), kind))
    if found.chunk_bytes > _MOST_IN_CHUNK:
        raise UnsoundError(f"has chunks of shape {list(chunks)}, which are too large to be read")
    if dims == [name] and shape[0] * ITEM_BYTES[kind] > _MOST_LABELS:
        raise UnsoundError(f"has {shape[0]} labels, which are too many to be read")
    return found


def _codecs(value: Any, kind: str) -> tuple[str, ...]:
    """Names of the codecs: values to bytes, at most one that compresses, the checksum."""
    first = "vlen-utf8" if kind == "string" else "bytes"
    names = [c.get("name") if isinstance(c, dict) else c for c in _as_list(value)]
    if names in ([first, "crc32c"], [first, "zstd", "crc32c"], ["bytes", "blosc", "crc32c"]):
        endian = (value[0].get("configuration") or {}) if isinstance(value[0], dict) else {}
        if isinstance(endian, dict) and endian.get("endian", "little") == "little":
            return tuple(map(str, names))
    raise UnsoundError(f"has the codecs {_short(names)}, which are none that are read")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _lengths(value: Any, least: int) -> tuple[int, ...] | None:
    """Whole numbers that fit a 64-bit size, or None."""
    numbers = _as_list(value)
    if (
        not isinstance(value, list)
        or len(numbers) > _MOST_DIMS
        or any(type(n) is not int or not least <= n < 1 << 62 for n in numbers)
    ):
        return None
    return tuple(numbers)


def _zstd_content(head: bytes) -> int | None:
    """Bytes that a zstd frame says it decodes to (RFC 8878, section 3.1.1)."""
    if len(head) < 8 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = head[4]
    single = descriptor >> 5 & 1
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[descriptor >> 6]
    if not width:
        return None  # ours say it, and without it no room could be made beforehand
    return int.from_bytes(head[start : start + width], "little") + 256 * (width == 2)


def _json_kind(value: Any) -> str:
    kinds = {dict: "object", list: "list", str: "text", bool: "truth value", type(None): "null"}
    return kinds.get(type(value), "number")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
