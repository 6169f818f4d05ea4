"""What a stranger's files do to a command: run for real, with a key, among listeners that hear everything.

Only plain files and the command line are used, so that the same tests run on older versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refusal_nn import store
from refusal_nn.models import embedded_path
from tests.loopback import Loopback
from tests.patience import limit

KEY = "5ec0e7ed-1111-2222-3333-444444444444"
ROOT = Path(__file__).parents[2]
MEMORY = 8 << 30
"""Bytes of addresses that a command may have: what asks for all there is fails here alone."""
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Listener(Loopback):
    """Everything that is asked of one port of this machine, which answers as a server without models."""

    def answer(self, path: str) -> bytes:
        """An empty list of deployments."""
        return json.dumps({"deployments": {}}).encode()

    @property
    def heard(self) -> list[bytes]:
        """The requests as they were sent."""
        return [asked.raw for asked in self.seen]


@dataclass
class Ended:
    """How a command ended."""

    words: list[str]
    code: int
    out: str
    err: str

    def sentence(self) -> str:
        """What a command says that refused: one sentence, and nothing of Python."""
        self.allowed()
        assert self.code in (1, 2), self
        lines = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        assert len(lines) == 1, self
        assert len(lines[0]) < 1500, self
        return lines[0]

    def allowed(self) -> Ended:
        """The same, if the command is done or refused as every one may."""
        assert "Traceback" not in self.err + self.out, self.err[-2000:]
        assert self.code in (0, 1, 2), self
        steering = STEERS.search(self.out + self.err)
        assert steering is None, (steering, self)
        return self


@dataclass
class Place:
    """A folder of runs of strangers, a home, a working folder, a key, and who listens.

    Attributes
    ----------
    evil : Listener
        Named in the files only.
    own : Listener
        The user's own server, in NDIF_HOST.
    network : Listener
        A proxy: whatever goes to another machine reaches it.
    """

    folder: Path
    evil: Listener = field(default_factory=Listener)
    own: Listener = field(default_factory=Listener)
    network: Listener = field(default_factory=Listener)

    def __post_init__(self) -> None:
        for name in ("stores", "home", "work", "elsewhere", "tmp"):
            (self.folder / name).mkdir()
        self.stores, self.work = self.folder / "stores", self.folder / "work"
        self.elsewhere = self.folder / "elsewhere"

    def command(self, *words: object, seconds: float = 30, **environment: str) -> Ended:
        """A command as the user would type it in the working folder; afterwards, who heard what."""
        taken = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        env = {
            **taken,
            "HOME": str(self.folder / "home"),
            "HF_HOME": str(self.folder / "home" / "hub"),
            "TMPDIR": str(self.folder / "tmp"),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "NDIF_API_KEY": KEY,
            "NDIF_HOST": self.own.url,
            "HTTP_PROXY": self.network.url,
            "HTTPS_PROXY": self.network.url,
            **environment,
        }
        typed = [str(word) for word in words]
        shim = "import conftest; from refusal_nn.cli import main; main()"  # also in a bare checkout
        done = subprocess.run(
            [sys.executable, "-c", shim, *typed],
            cwd=self.work,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit(seconds),
            preexec_fn=_bounded,
            check=False,
        )
        out, err = (text.decode("utf-8", "surrogateescape") for text in (done.stdout, done.stderr))
        ended = Ended(typed, done.returncode, out, err)
        self.no_key_left(ended)
        return ended

    def no_key_left(self, ended: Ended) -> None:
        """Nobody but the user's own server was asked with the key, and who files name heard nothing."""
        assert self.evil.heard == [], (self.evil.heard, ended)
        assert all(KEY.encode() not in said for said in self.network.heard), (ended, "key sent")
        assert KEY not in ended.out + ended.err

    def close(self) -> None:
        for listener in (self.evil, self.own, self.network):
            listener.close()

    def run(self, name: str, change: Callable[[Path], object] | None = None) -> Path:
        """A complete run; changed and sealed again, if its maker meant so."""
        path = self.stores / f"{name}.zarr"
        shutil.copytree(store.sample_run(), path)
        if change is not None:
            change(path)
            seal(path)
        return path

    def partial(self, name: str, request: dict[str, Any], **attrs: Any) -> Path:
        """A run of a version before the record of calls, which says what was typed."""
        path = self.stores / f"{name}.zarr.partial"
        path.mkdir()
        given = {
            "analysis": "direction-extract",
            "model": "tiny-refuser",
            "dtype": "float32",
            **attrs,
        }
        node = {"attributes": given, "zarr_format": 3, "node_type": "group"}
        (path / "zarr.json").write_text(json.dumps(node))
        (path / "request.json").write_text(json.dumps(request))
        (path / "attempts.json").write_text(json.dumps([{"started": 1.0, "seconds": 1.0}]))
        return path

    def files(self) -> set[str]:
        """Every file in the places that a command has no business in."""
        places = (self.folder / "home", self.work, self.elsewhere)
        return {str(path.relative_to(self.folder)) for top in places for path in top.rglob("*")}


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def seal(run: Path) -> None:
    """Write a run's manifest anew, as its maker could."""
    hashes = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    text = json.dumps(hashes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    own = hashlib.sha256(text.encode()).hexdigest()
    content = {"files": hashes, "format": 1, "sha256": own}
    whole = json.dumps(content, indent=0, sort_keys=True, ensure_ascii=False) + "\n"
    (run / "manifest.json").write_text(whole)


def edit(run: Path, change: Callable[[dict[str, Any]], object], node: str = "") -> None:
    """Change a node's own metadata, and what the root repeats of them."""
    root = json.loads((run / "zarr.json").read_text())
    if node:
        own = json.loads((run / node / "zarr.json").read_text())
        change(own)
        (run / node / "zarr.json").write_text(json.dumps(own))
        change(root["consolidated_metadata"]["metadata"][node])
    else:
        change(root)
    (run / "zarr.json").write_text(json.dumps(root))


def attributes(**values: Any) -> Callable[[Path], None]:
    """Set attrs of a run."""
    return lambda run: edit(run, lambda root: root["attributes"].update(values))


def model_folder(path: Path, **config: Any) -> Path:
    """The folder of the embedded model, its configuration changed."""
    source = embedded_path("tiny-refuser")
    assert source is not None
    shutil.copytree(source, path)
    known = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**known, **config}))
    return path


def remote_code(folder: Path, marker: Path) -> Path:
    """A model folder whose own code would make a file."""
    path = model_folder(folder, auto_map={"AutoConfig": "own.Config"}, model_type="own")
    (path / "own.py").write_text(
        "from transformers import PretrainedConfig\n"
        f"open({str(marker)!r}, 'w').close()\n\n\nclass Config(PretrainedConfig):\n"
        "    model_type = 'own'\n"
    )
    return path
