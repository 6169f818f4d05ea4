"""The processes that make up an NDIF server on loopback: how each is started and when it answers.

Everything is the server's own code and settings, except the model actor, which keeps the model on the
CPU, and what the server's start scripts have no setting for: loopback addresses and a declared GPU.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.ndif.layout import LOOPBACK, Layout
from tests.patience import limit

HERE = Path(__file__).resolve().parent
# Room for hundreds of the embedded models; a 1B model in float32 is too large.
DECLARED_MEMORY = 4_000_000_000
KEYS = {
    "known": "7b9c3a52-6d0e-4f1b-9a57-2f7f0c9f1e11",
    "unknown": "00000000-0000-4000-8000-000000000000",
}
_NOBODY = 65534


@dataclass(frozen=True)
class Part:
    """One part of the server.

    Attributes
    ----------
    command : sequence of str
        What to run.
    answers : callable or None
        Whether it is of use yet; None for a command that has done its work when it ends.
    after : sequence of str
        Parts that have to answer before this one is started.
    environment : mapping
        Added to the server's.
    user : int or None
        The user to run it as, where this process may choose.
    before : callable or None
        Done right before it is started.
    """

    command: Sequence[str]
    answers: Callable[[], bool] | None
    after: Sequence[str] = ()
    environment: Mapping[str, str] | None = None
    user: int | None = None
    before: Callable[[], None] | None = None


def http_status(port: int, path: str) -> int | None:
    """The status that a server on loopback answers with, None when none answers in time."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=limit(1))
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def redis_command(port: int, *words: str) -> str | None:
    """The first line of redis' answer to a command, None when it does not answer in time."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=limit(1)) as connection:
            connection.sendall(" ".join(words).encode() + b"\r\n")
            return connection.recv(4096).split(b"\r\n")[0].decode()
    except OSError:
        return None


def server_parts(layout: Layout) -> dict[str, Part]:
    """Every part of the server, in the order in which they are started."""
    ports, python = layout.ports, str(layout.venv / "bin" / "python")
    no_save = {"NNSIGHT_CONFIG": str(layout.scratch / "no-save.yaml")}
    return {
        "hub": Part(
            [python, str(HERE / "hub.py"), str(layout.scratch / "hub"), str(ports["hub"])],
            lambda: http_status(ports["hub"], "/") == 404,
        ),
        "redis": Part(
            [
                *("redis-server", "--bind", LOOPBACK, "--port", str(ports["redis"])),
                *("--save", "", "--appendonly", "no", "--dir", str(layout.scratch)),
            ],
            lambda: redis_command(ports["redis"], "PING") == "+PONG",
        ),
        "objects": Part(
            [str(layout.venv / "bin" / "moto_server"), "-H", LOOPBACK, "-p", str(ports["objects"])],
            lambda: http_status(ports["objects"], "/") == 200,
        ),
        "api": Part(
            _gunicorn(layout, "api"),
            lambda: http_status(ports["api"], "/ping") == 200,
            environment={**no_save, "NDIF_SERVICE": "api"},
        ),
        "ray": Part(_ray_head(layout), None),
        "controller": Part(
            [python, "-m", "ndif.services.ray.deployments.controller.controller"],
            None,
            after=("hub", "redis", "objects", "ray"),
            environment={"RAY_ADDRESS": f"{LOOPBACK}:{ports['gcs']}", "NDIF_SERVICE": "ray"},
        ),
        "dispatcher": Part(
            [python, "-m", "ndif.services.api.queue.dispatcher"],
            lambda: http_status(ports["api"], "/connected") == 200,
            after=("api", "controller"),
            environment={**no_save, "NDIF_SERVICE": "api"},
        ),
    }


def auth_parts(layout: Layout) -> dict[str, Part]:
    """A second API, one that checks keys, and its database; they are started when asked for."""
    port, python = layout.ports["postgres"], str(layout.venv / "bin" / "python")
    address = f"{LOOPBACK}:{port}/postgres"
    home = layout.scratch / "postgres"
    programs, data = home / "pgserver" / "pginstall" / "bin", str(home / "data")
    nobody = _NOBODY if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
    return {
        "postgres-data": Part(
            [
                *(str(programs / "initdb"), "--pgdata", data, "--username", "admin"),
                *("--auth", "trust", "--no-sync", "--no-locale", "--encoding", "UTF8"),
            ],
            None,
            user=nobody,
            before=lambda: _copy_postgres(layout.venv, home, nobody),
        ),
        "postgres": Part(
            [
                *(str(programs / "postgres"), "-D", data, "-h", LOOPBACK, "-p", str(port)),
                *_settings(unix_socket_directories="", fsync="off", shared_buffers="8MB"),
                # in files, so that nothing is left in the machine's shared memory after kill -9
                *_settings(shared_memory_type="mmap", dynamic_shared_memory_type="mmap"),
            ],
            lambda: _succeeds([str(programs / "pg_isready"), "-h", LOOPBACK, "-p", str(port)]),
            after=("postgres-data",),
            user=nobody,
        ),
        "keys": Part(
            [python, str(HERE / "keys.py"), f"postgresql://admin@{address}", KEYS["known"]],
            None,
            after=("postgres",),
        ),
        "auth-api": Part(
            _gunicorn(layout, "auth-api"),
            lambda: http_status(layout.ports["auth-api"], "/ping") == 200,
            after=("redis", "keys"),
            environment={
                "NNSIGHT_CONFIG": str(layout.scratch / "no-save.yaml"),
                "NDIF_SERVICE": "api",
                "NDIF_POSTGRES_URL": f"postgresql://ndifapi@{address}",
            },
        ),
    }


def _copy_postgres(venv: Path, home: Path, user: int | None) -> None:
    """Copy the programs to where the user they run as can read them."""
    installed = next((venv / "lib").glob("python*/site-packages/pgserver"))
    unneeded = shutil.ignore_patterns("include", "__pycache__")
    for package in (installed, installed.with_name("pgserver.libs")):
        shutil.copytree(package, home / package.name, symlinks=True, ignore=unneeded)
    if user is not None:
        os.chown(home, user, user)


def _settings(**values: str) -> list[str]:
    return [word for name, value in values.items() for word in ("-c", f"{name}={value}")]


def _succeeds(command: Sequence[str]) -> bool:
    quiet = subprocess.DEVNULL
    return subprocess.run(command, stdout=quiet, stderr=quiet, timeout=limit(10)).returncode == 0


def _gunicorn(layout: Layout, name: str) -> list[str]:
    return [
        *("gunicorn", "--config", "python:gunicorn_api", "--no-control-socket"),
        *("--bind", f"{LOOPBACK}:{layout.ports[name]}", "ndif.services.api.app:app"),
    ]


def _ray_head(layout: Layout) -> list[str]:
    """The server's ``ray start``, on loopback and with one GPU declared."""
    resources = {
        "head": 10,
        "cuda_memory_bytes": DECLARED_MEMORY,
        "cpu_memory_bytes": DECLARED_MEMORY,
    }
    ports = layout.ports
    return [
        *("ray", "start", "--head", f"--node-ip-address={LOOPBACK}", f"--port={ports['gcs']}"),
        *(f"--ray-client-server-port={ports['ray']}", "--num-cpus=2", "--num-gpus=1"),
        f"--resources={json.dumps(resources)}",
        *("--object-store-memory=200000000", "--include-dashboard=true"),
        *(f"--dashboard-host={LOOPBACK}", f"--dashboard-port={ports['dashboard']}"),
        *(f"--dashboard-agent-listen-port={ports['agent']}", "--disable-usage-stats"),
        # Ray chooses its workers' ports itself: a fixed range would clash with another Ray's
        *("--min-worker-port=0", "--max-worker-port=0"),
        f"--temp-dir={layout.scratch / 'ray'}",
    ]
