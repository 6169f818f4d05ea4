"""Where one stack keeps its files, which ports it uses, and what its processes run with."""

from __future__ import annotations

import os
import random
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
PORTS = (
    *("hub", "redis", "objects", "api", "auth-api", "postgres"),
    *("gcs", "ray", "agent", "dashboard"),
)
# Above what Ray's client proxy hands out (23000-23999), below what the kernel gives to outgoing
# connections (32768 and up).
_PORT_RANGE = range(25000, 32768)
_SHIM = Path(__file__).resolve().parent / "shim"
# Settings of the user's own that must not reach a server under test, nor its client.
_FOREIGN = ("NDIF_", "HF_", "HUGGING", "NNSIGHT_")
_FOREIGN_TO_SERVER = (*_FOREIGN, "RAY_", "AWS_", "PYTHON", "PG", "REDIS")


@dataclass(frozen=True)
class Layout:
    """Where everything of one stack is.

    Attributes
    ----------
    venv : Path
        The server's environment.
    scratch : Path
        Short-lived files; a short path, since Ray's sockets lie under it.
    logs : Path
        One file for each part; they outlive the stack.
    ports : mapping
        A free port for each name of ``PORTS``.
    """

    venv: Path
    scratch: Path
    logs: Path
    ports: Mapping[str, int]

    def url(self, name: str) -> str:
        """The address of an HTTP part."""
        return f"http://{LOOPBACK}:{self.ports[name]}"

    @property
    def control(self) -> Path:
        """The socket on which the stack takes orders."""
        return self.scratch / "control.sock"

    @property
    def state(self) -> Path:
        """A JSON file that says where everything is, rewritten when a part is restarted."""
        return self.scratch / "state.json"

    def client_environment(self) -> dict[str, str]:
        """What a client of this stack, and of nothing else, runs with."""
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN)},
            **self.client_settings(),
        }

    def client_settings(self) -> dict[str, str]:
        """The variables of :meth:`client_environment` that matter."""
        return {
            "HF_ENDPOINT": self.url("hub"),
            "HF_HOME": str(self.scratch / "client-hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NDIF_HOST": self.url("api"),
            "NNSIGHT_CONFIG": str(self.scratch / "client.yaml"),
            "NO_PROXY": f"{LOOPBACK},localhost",
            "no_proxy": f"{LOOPBACK},localhost",
            "REFUSAL_NN_NDIF_STACK": str(self.state),
        }

    def server_environment(self) -> dict[str, str]:
        """What every process of the server runs with."""
        shared = (
            "HF_ENDPOINT",
            "HF_HUB_DISABLE_XET",
            "HF_HUB_DISABLE_TELEMETRY",
            "NO_PROXY",
            "no_proxy",
        )
        client = self.client_settings()
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN_TO_SERVER)},
            **{name: client[name] for name in shared},
            "HF_HOME": str(self.scratch / "server-hf"),
            "HOME": str(self.scratch),
            "PATH": f"{self.venv / 'bin'}:{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": str(_SHIM),
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "OMP_NUM_THREADS": "1",
            "NDIF_HOME": str(self.scratch),
            "NDIF_REDIS_URL": f"redis://{LOOPBACK}:{self.ports['redis']}",
            "NDIF_OBJECT_STORE_URL": self.url("objects"),
            "NDIF_API_PORT": str(self.ports["api"]),
            "NDIF_RAY_ADDRESS": f"ray://{LOOPBACK}:{self.ports['ray']}",
            "NDIF_RAY_HEAD_PORT": str(self.ports["gcs"]),
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "ndif_cpu.CPUModelActor",
            "NDIF_DEFAULT_DTYPE": "float32",
            "NDIF_DEFAULT_PADDING_BIAS": "0",
            "NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS": "0",
            "NDIF_STATUS_TTL_S": "1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Without it Ray replaces 127.0.0.1 by the network card's address and listens on every
            # interface, unauthenticated: whoever reaches it can run code here.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }


def require_server(layout: Layout) -> None:
    """Check that what the parts run is installed.

    Raises
    ------
    SystemExit
        When the server's environment or redis is not there.
    """
    if not (layout.venv / ".installed").exists():
        raise SystemExit(f"There is no NDIF server in {layout.venv}; `make ndif-env` installs it.")
    path = layout.server_environment()["PATH"]
    if shutil.which("redis-server", path=path) is None:
        raise SystemExit("redis-server is not installed; `make ndif-env` installs it.")


def prepare(layout: Layout) -> None:
    """Make the folders and files that the parts expect."""
    for name in ("cwd", "client-hf", "server-hf", "ray"):
        (layout.scratch / name).mkdir()
    # the user's own configuration of nnsight may hold a key
    (layout.scratch / "client.yaml").write_text("API: {}\n", encoding="utf-8")
    # nnsight's `.save` on every object breaks anyio's lazy import, and with it large uploads
    (layout.scratch / "no-save.yaml").write_text("APP:\n  PYMOUNT: false\n", encoding="utf-8")


def free_ports() -> dict[str, int]:
    """A port nobody has for each name of ``PORTS``."""
    found: list[int] = []
    candidates = iter(random.sample(_PORT_RANGE, len(_PORT_RANGE)))
    while len(found) < len(PORTS):
        port = next(candidates)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        found.append(port)
    return dict(zip(PORTS, found, strict=True))
