"""The process behind dry runs and preflights: run as a script, never imported.

Reads serialised nnsight jobs from standard input and writes what they saved to standard output,
each with an 8-byte length. Like a server it has torch, transformers and nnsight, and none of our
code.
"""

import importlib.abc
import io
import os
import signal
import struct
import sys
from typing import Any

HIDDEN = {"refusal_nn", "cli"}


class Missing(importlib.abc.MetaPathFinder):
    """Makes packages a server does not have unimportable."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r} on the server", name=name)
        return


def load(source: str, dtype: str, attention: str, weights: str, revision: str, trusted: str) -> Any:
    import torch
    from nnsight.modeling.transformers import TransformersModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    return TransformersModel(
        source,
        task="text-generation",
        tokenizer=source,
        dispatch=weights == "weights",
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        **({"revision": revision} if revision else {}),
        **({"trust_remote_code": True} if trusted else {}),
        **({"device": "cpu"} if weights == "weights" else {}),
    )


def run(model: Any, blob: bytes, execute: bool) -> dict[str, Any]:
    from nnsight.schema.request import RequestModel
    from nnsight.tracing.globals import BLOCKS, SOURCES
    from nnsight.tracing.tracer import _saves, dec, inc

    # nnsight caches sources by file name for the whole process; jobs from one file would collide
    BLOCKS.clear()
    SOURCES.clear()
    tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), False)
    if not execute:
        return {}
    tracer.backend = None
    inc()
    try:
        tracer.execute(tracer.info.code)
        saved = _saves()
        return {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in saved}
    finally:
        dec()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this and ends it
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever libraries print must not mix with replies
    sys.meta_path.insert(0, Missing())
    import warnings

    warnings.filterwarnings("ignore", message="(?s).*was never reached")
    import torch

    model = load(*sys.argv[1:])
    HIDDEN.update({"xarray", "zarr"})  # torch looks for xarray while it loads, so only now
    execute = sys.argv[4] == "weights"
    if execute:
        model._module.requires_grad_(False)
        model._module.eval()
        if sys.argv[2] == "float64" and model._module._can_set_experts_implementation():
            model._module.set_experts_implementation("eager")
    requests = sys.stdin.buffer
    while len(header := requests.read(8)) == 8:
        blob = requests.read(struct.unpack("<Q", header)[0])
        try:
            answer: dict[str, Any] = {"saved": run(model, blob, execute)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        replies.write(struct.pack("<Q", buffer.tell()) + buffer.getvalue())
        replies.flush()


if __name__ == "__main__":
    main()
