"""Starts the parts of a stack, restarts them on demand, and knows which process is which."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.ndif import processes
from tests.ndif.layout import Layout
from tests.ndif.parts import KEYS, Part, redis_command
from tests.patience import limit

START_LIMIT = limit(60)
# Parts that others of them start, told by their command line.
_FOUND = {
    "actor": "ray::CPUModelActor",
    "raylet": "/raylet/raylet ",
    "gcs": "/gcs/gcs_server ",
}


class StackError(Exception):
    """The stack cannot do what it is asked to."""


class Supervisor:
    """The running parts of one stack.

    Everything it starts is its descendant, daemons included, as long as it has called
    :func:`processes.adopt_orphans` first.

    Parameters
    ----------
    layout : Layout
        Where everything is.
    parts : mapping
        What can be started, by name.
    say : callable
        Takes a line for the user.
    """

    def __init__(
        self, layout: Layout, parts: Mapping[str, Part], say: Callable[[str], None]
    ) -> None:
        self.layout, self.parts, self.say = layout, parts, say
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.done: set[str] = set()
        self.command: subprocess.Popen[bytes] | None = None

    def managed(self) -> list[int]:
        """Children whose exit status is waited for here."""
        children = [*self.running.values(), *([self.command] if self.command else [])]
        return [child.pid for child in children]

    def start_all(self, names: list[str]) -> None:
        """Start parts, those together that need not wait for each other."""
        waiting = list(names)
        while waiting or any(not self.answers(name) for name in names):
            for name in list(waiting):
                if all(self.answers(other) for other in self.parts[name].after):
                    self.launch(name)
                    waiting.remove(name)
            self.check_alive(names)
            time.sleep(0.1)

    def launch(self, name: str) -> None:
        """Start one part without waiting for it."""
        part = self.parts[name]
        environment = {**self.layout.server_environment(), **(part.environment or {})}
        if part.before is not None:
            part.before()
        identity: dict[str, Any] = {}
        if part.user is not None:
            identity = {"user": part.user, "group": part.user, "extra_groups": []}
        again = "ab" if name in self.running else "wb"
        with (self.layout.logs / f"{name}.log").open(again) as log:
            try:
                self.running[name] = subprocess.Popen(
                    list(part.command),
                    env=environment,
                    # Ray puts the folder it was started from on its workers' import path
                    cwd=self.layout.scratch / "cwd",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    **identity,
                )
            except OSError as error:
                raise StackError(f"{name} cannot be started: {error}") from error
        self.say(f"{name} is starting")

    def answers(self, name: str) -> bool:
        """Whether a part is of use: it answers, or has done its work."""
        if name in self.done:
            return True
        child, part = self.running.get(name), self.parts[name]
        if child is None:
            return False
        if part.answers is None:
            if child.poll() == 0:
                self.done.add(name)
                self.say(f"{name} is done")
            return name in self.done
        return child.poll() is None and part.answers()

    def check_alive(self, names: list[str]) -> None:
        """Raise when a part has failed."""
        for name in names:
            child = self.running.get(name)
            if child is not None and name not in self.done and child.poll() is not None:
                if child.returncode == 0 and self.parts[name].answers is None:
                    continue
                raise StackError(
                    f"{name} ended with status {child.returncode}; the end of its log:\n"
                    + self.log_end(name)
                )

    def log_end(self, name: str, characters: int = 3000) -> str:
        """The last characters of a part's log."""
        return (self.layout.logs / f"{name}.log").read_text(errors="replace")[-characters:]

    def start(self, name: str) -> None:
        """Start a part with what it needs, unless it runs, and wait until it answers."""
        if name not in self.parts:
            raise StackError(f"There is no part {name!r}; there are {', '.join(self.parts)}.")
        for other in self.parts[name].after:
            if not self.answers(other):
                self.start(other)
        if self.running_now(name):
            return
        if name == "dispatcher":
            # the dispatcher that was killed has left word in redis that it is there
            redis_command(self.layout.ports["redis"], "DEL", "ray:connected")
        self.launch(name)
        self.wait(name)

    def wait(self, name: str) -> None:
        """Wait until a part answers."""
        limit = time.monotonic() + START_LIMIT
        while not self.answers(name):
            self.check_alive([name])
            if time.monotonic() > limit:
                raise StackError(
                    f"{name} does not answer after {START_LIMIT:.0f} s; the end of its log:\n"
                    + self.log_end(name)
                )
            time.sleep(0.1)
        self.write_state()

    def running_now(self, name: str) -> bool:
        """Whether a part's process is there."""
        child = self.running.get(name)
        return name in self.done or (child is not None and child.poll() is None)

    def pids(self, name: str) -> list[int]:
        """The processes of a part, its own first."""
        if name in _FOUND:
            mine = processes.descendants(os.getpid())
            return sorted(p for p in mine if _FOUND[name] in processes.command_line(p) + " ")
        child = self.running.get(name)
        if name not in self.parts:
            raise StackError(f"There is no part {name!r}; there are {', '.join(self.names())}.")
        if child is None or child.poll() is not None:
            return []
        return [child.pid, *sorted(processes.descendants(child.pid))]

    def names(self) -> list[str]:
        """Everything that :meth:`pids` knows."""
        return [*self.parts, *_FOUND]

    def kill(self, name: str) -> list[int]:
        """Kill -9 every process of a part; returns their ids when they are gone."""
        killed = self.pids(name)
        if not killed:
            raise StackError(f"{name} is not running.")
        for pid in killed:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        while set(killed) & processes.descendants(os.getpid()):
            time.sleep(0.01)
        child = self.running.get(name)
        if child is not None:
            child.wait()
        self.write_state()
        return killed

    def restart(self, name: str) -> None:
        """Start a part again, killing it first if it still runs.

        The dispatcher goes with redis: it does not put back the mark by which the API knows that it
        is there, nor restart the tasks that ended with the connection (an operator restarts it too).
        """
        if name in _FOUND or self.parts[name].answers is None:
            raise StackError(f"{name} cannot be restarted by itself.")
        together = [name, *(["dispatcher"] if name == "redis" else [])]
        for one in together:
            if self.pids(one):
                self.kill(one)
        for one in together:
            self.start(one)

    def exposed(self) -> list[str]:
        """Listening sockets of ours that others than this machine may reach."""
        found = processes.listeners(processes.descendants(os.getpid()))
        return [str(listener) for listener in found if not listener.loopback]

    def listening(self) -> list[str]:
        """All listening sockets of ours."""
        return [str(one) for one in processes.listeners(processes.descendants(os.getpid()))]

    def write_state(self) -> None:
        """Record where everything is, for the command that the stack runs."""
        state = {
            "supervisor": os.getpid(),
            "guardian": os.getppid(),
            "control": str(self.layout.control),
            "logs": str(self.layout.logs),
            "venv": str(self.layout.venv),
            "urls": {name: self.layout.url(name) for name in ("hub", "objects", "api", "auth-api")},
            "keys": dict(KEYS),
            "pids": {name: pids for name in self.parts if (pids := self.pids(name))},
        }
        temporary = self.layout.state.with_suffix(".new")
        temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
        temporary.replace(self.layout.state)


def serve_one(supervisor: Supervisor, server: socket.socket) -> None:
    """Answer one order: a JSON line ``[method, argument, …]``, answered by a JSON line."""
    allowed = ("pids", "kill", "start", "restart", "exposed", "listening", "answers", "names")
    connection, _ = server.accept()
    with connection, connection.makefile("rw") as stream:
        connection.settimeout(limit(30))
        try:
            method, *arguments = json.loads(stream.readline())
            if method not in allowed:
                raise StackError(f"The stack takes no order {method!r}.")
            answer = {"value": getattr(supervisor, method)(*arguments)}
        except (StackError, ValueError, TypeError, OSError) as error:
            answer = {"error": str(error)}
        try:
            stream.write(json.dumps(answer) + "\n")
            stream.flush()
        except OSError:  # whoever asked has gone
            return


def control_socket(path: Path) -> socket.socket:
    """A socket for orders; only this user may write to it."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(str(path))
    path.chmod(0o600)
    server.listen(16)
    server.settimeout(0.1)
    return server
