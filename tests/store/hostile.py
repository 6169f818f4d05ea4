"""How a run is begun, and how a hostile stranger would change it: the tools and the lists of kinds."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import xarray as xr

from refusal_nn.store import RunRecorder, manifest
from tests.store.synthetic import FINGERPRINT, provenance

BATCHES = [{"layer": slice(i, i + 1)} for i in range(3)]
TEMPLATE = xr.Dataset({"bypass": ("layer", np.full(3, np.nan))}, {"layer": np.arange(3)})

Mutation = Callable[[Path, random.Random, Path], None]

COMPLETE: dict[str, Mutation] = {}
PARTIAL: dict[str, Mutation] = {}


def begin(path: Path) -> RunRecorder:
    """A partial run with a stage that was interrupted, a loop and jobs."""
    recorder = RunRecorder(path, fingerprint=FINGERPRINT, provenance=provenance(), request={})
    with recorder:
        with contextlib.suppress(InterruptedError):
            stage(recorder, stop=1)
        (recorder.partial / "scores.jobs.json").write_text("[]")
    return recorder


def stage(recorder: RunRecorder, stop: int = 3) -> xr.Dataset:
    """The stage of :func:`begin`."""

    def compute(i: int) -> xr.Dataset:
        if i == stop:
            raise InterruptedError
        return TEMPLATE.isel(BATCHES[i]).fillna(float(i))

    return recorder.stage("scores", TEMPLATE, BATCHES, compute)


def complete(mutation: Mutation) -> Mutation:
    """A kind of hostile complete run whose manifest was made anew, where it still can be."""

    def sealed(run: Path, rng: random.Random, outside: Path) -> None:
        mutation(run, rng, outside)
        reseal(run)

    COMPLETE[mutation.__name__] = sealed
    return mutation


def complete_as_is(mutation: Mutation) -> Mutation:
    """A kind of hostile complete run with the manifest it had."""
    COMPLETE[mutation.__name__] = mutation
    return mutation


def partial(mutation: Mutation) -> Mutation:
    """A kind of hostile partial run."""
    PARTIAL[mutation.__name__] = mutation
    return mutation


def reseal(run: Path) -> None:
    """A manifest as its maker would write it to pass ``runs verify``, were links and pipes files."""
    import hashlib

    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run)).encode(errors="replace").decode()
        if path.is_file() and path != run / manifest.NAME:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    replace(run / manifest.NAME, manifest._text(found))


def replace(path: Path, content: bytes | str) -> None:
    """Another file under a name."""
    path.unlink(missing_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def edit(run: Path, change: Callable[[dict[str, Any]], Any], node: str = "") -> None:
    """Change the metadata of a node, and what the root says of it."""
    path = run / node / "zarr.json"
    own = json.loads(path.read_bytes())
    changed = change(own)
    replace(path, json.dumps(own if changed is None else changed))
    root = json.loads((run / "zarr.json").read_bytes())
    held = (root.get("consolidated_metadata") or {}).get("metadata") if node else None
    if held is not None:
        changed = change(held[node])
        held[node] = held[node] if changed is None else changed
        replace(run / "zarr.json", json.dumps(root))


def setting(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda node: node.update(values)


def attribute(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda node: node["attributes"].update(values)


def chunk(content: bytes) -> bytes:
    """A chunk with the right checksum."""
    return content + struct.pack("<I", google_crc32c.value(content))


def variables(run: Path) -> list[str]:
    return sorted(str(p.parent.relative_to(run)) for p in run.rglob("c"))


def numbers(run: Path) -> list[str]:
    """The variables that are no text and lie along a dim."""
    nodes = {v: json.loads((run / v / "zarr.json").read_bytes()) for v in variables(run)}
    return [v for v, n in nodes.items() if n["shape"] and n["data_type"] != "string"]


def nest(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


def a_chunk(run: Path, text: bool, rng: random.Random) -> Path:
    """A chunk of a variable of text, or of one of numbers."""
    is_text = {v: v not in numbers(run) for v in variables(run)}
    chosen = rng.choice([v for v, t in is_text.items() if t is text])
    return next(p for p in sorted((run / chosen / "c").rglob("*")) if p.is_file())


def link(path: Path, target: Path) -> None:
    """A link instead of what is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def copy(source: str, target: str) -> None:
    """Another name for a file; a lock, which has one alone, is copied."""
    if os.path.basename(source) == "lock":  # noqa: PTH119
        shutil.copyfile(source, target)
    else:
        os.link(source, target)
