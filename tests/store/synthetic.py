"""A small analysis with every kind of variable and two stages, as a library and as a program.

``python -m tests.store.synthetic FOLDER ATTEMPT...`` runs it once for each attempt: ``full`` to the
end, or a number: killed by SIGKILL just before that file-system step (0: to the end, printing how
many steps there are), then resumed in a fresh process.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from refusal_nn.store import RunRecorder
from refusal_nn.store.provenance import VOLATILE

N, BATCH, LAYERS = 11, 3, 4
FINGERPRINT = "ab" * 32
STEPS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.truncate", "os.utime"}


def provenance(**changes: Any) -> dict[str, Any]:
    return {
        "analysis": "synthetic-test",
        "model": "tiny",
        "revision": "",
        "tokenizer_hash": "t" * 16,
        "template_hash": "c" * 16,
        "dtype": "float32",
        "device": "cpu",
        "backend": "local",
        "prompts_hash": "p" * 16,
        "interventions": [{"kind": "ablation", "layers": None}],
        "seed": 0,
        "versions": {"python": "3.11"},
        "command": "refusal-nn synthetic test",
        **changes,
    }


def prompt_coords(n: int = N) -> dict[str, Any]:
    values = {
        "prompt_id": [f"{i:016x}" for i in range(n)],
        "category": [("violence", "privacy")[i % 2] for i in range(n)],
        "harm": [("harmful", "harmless")[i % 2] for i in range(n)],
        "style": [("toxic", "safe")[i % 2] for i in range(n)],
        "split": ["train"] * n,
        "source": ["synthetic"] * n,
        "family": [f"f{i // 2}" for i in range(n)],
    }
    return {k: ("prompt", np.array(v, dtype=object)) for k, v in values.items()}


def batches(n: int = N, size: int = BATCH, dim: str = "prompt") -> list[dict[str, slice]]:
    return [{dim: slice(a, min(a + size, n))} for a in range(0, n, size)]


def prompt_template(n: int = N) -> xr.Dataset:
    return xr.Dataset(
        {
            "refusal_score": ("prompt", np.full(n, np.nan)),
            "completion": ("prompt", np.full(n, "", dtype=object)),
            "refused": ("prompt", np.zeros(n, dtype=bool)),
            "n_tokens": ("prompt", np.zeros(n, dtype=np.int64)),
            "activation": (("prompt", "layer", "d_model"), np.zeros((n, LAYERS, 5), np.float32)),
        },
        coords={**prompt_coords(n), "layer": np.arange(LAYERS)},
        attrs={"site": "resid_pre"},
    )


def compute_prompts(template: xr.Dataset, region: dict[str, slice]) -> xr.Dataset:
    part = template.isel(region)
    rows = np.arange(template.sizes["prompt"])[region["prompt"]]
    return part.assign(
        refusal_score=("prompt", np.sin(rows) * 3),
        completion=("prompt", np.array([f"Ich kann das nicht – {i} 💬" for i in rows], object)),
        refused=("prompt", rows % 3 == 0),
        n_tokens=("prompt", rows * 0),
        activation=(
            ("prompt", "layer", "d_model"),
            np.stack([np.random.default_rng(int(i)).normal(size=(LAYERS, 5)) for i in rows]).astype(
                np.float32
            ),
        ),
    )


def analyse(recorder: Any, *, pause: float = 0.0) -> xr.DataTree:
    """Two stages, the second laid out from the first's result, then a commit with a kept stage."""
    template, regions = prompt_template(), batches()

    def first(i: int) -> xr.Dataset:
        time.sleep(pause)
        return compute_prompts(template, regions[i])

    scored = recorder.stage("scores", template, regions, first)
    kept = np.flatnonzero(scored["refused"].values)
    table = xr.Dataset(
        {"bypass_per_prompt": (("candidate", "prompt"), np.full((5, len(kept)), np.nan))},
        coords={
            "candidate": np.arange(5),
            "layer": ("candidate", np.arange(5) % LAYERS),
            "position": ("candidate", -1 - np.arange(5) % 2),
            **{k: v.isel(prompt=kept) for k, v in scored.coords.items() if v.dims == ("prompt",)},
        },
    )
    parts = batches(5, 2, "candidate")

    def second(i: int) -> xr.Dataset:
        time.sleep(pause)
        part = table.isel(parts[i])
        value = scored["refusal_score"].values[kept] * (1 + part["candidate"].values[:, None])
        return part.assign(bypass_per_prompt=(("candidate", "prompt"), value))

    found = recorder.stage("sweep", table, parts, second)
    best = xr.Dataset(
        {
            "bypass": ("layer", np.arange(LAYERS) * float(found["bypass_per_prompt"].mean())),
            "direction": (("layer", "d_model"), scored["activation"].mean("prompt").values),
        },
        coords={"layer": np.arange(LAYERS)},
        attrs={"n_layers": LAYERS},
    )
    return recorder.commit(
        {"/": best, "per_prompt/sweep": found}, {"method": "synthetic"}, keep=["scores"]
    )


def recorder(folder: Path, **options: Any) -> RunRecorder:
    return RunRecorder(
        folder / "run",
        fingerprint=FINGERPRINT,
        provenance=provenance(),
        request={"analysis": "synthetic"},
        **options,
    )


def content(run: Path) -> dict[str, str]:
    """Hash of every file of a run, times and attempts left out of the root's metadata."""
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        data = path.read_bytes()
        if path == run / "zarr.json":
            node = json.loads(data)
            for key in VOLATILE:
                node["attributes"].pop(key, None)
            data = json.dumps(node).encode()
        if path == run / "manifest.json":
            files = json.loads(data)["files"]
            data = json.dumps({k: v for k, v in files.items() if k != "zarr.json"}).encode()
        found[str(path.relative_to(run))] = hashlib.sha256(data).hexdigest()
    return found


def _run_in_child(folder: Path, kill_before: int | None) -> tuple[int, int]:
    """Exit status and number of file-system steps of the analysis in a forked process."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        steps = 0

        def count(event: str, args: tuple[Any, ...]) -> None:
            nonlocal steps
            writes = (
                event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
            )
            if not writes and event not in STEPS:
                return
            if str(folder) not in str(args[0]) and event not in ("os.truncate", "os.utime"):
                return
            steps += 1
            if steps == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        code = 1
        try:
            rec = recorder(folder)
            if not rec.already_complete:
                analyse(rec)
            code = 0
        finally:
            os.write(write, str(steps).encode())
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    text = os.read(read, 64).decode()
    os.close(read)
    return os.waitstatus_to_exitcode(status), int(text or 0)


def main(argv: list[str]) -> None:
    base = Path(argv[0])
    for attempt in argv[1:]:
        folder = base / attempt
        folder.mkdir(parents=True)
        if attempt == "full":
            analyse(recorder(folder, progress=_say), pause=0.02)
            continue
        code, steps = _run_in_child(folder, int(attempt))
        if int(attempt):
            visible = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
            resumed, _ = _run_in_child(folder, None)
        else:
            visible, resumed = [], 0
        report = {
            "step": int(attempt),
            "code": code,
            "steps": steps,
            "visible": visible,
            "resumed": resumed,
            "left": sorted(p.name for p in folder.iterdir()),
            "content": content(folder / "run.zarr") if (folder / "run.zarr").is_dir() else {},
        }
        print(json.dumps(report), flush=True)


def _say(stage: str, done: int, total: int) -> None:
    print(stage, done, total, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
