"""A running stack, as the command that it runs sees it: where it is, and kill or restart a part."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.patience import limit

VARIABLE = "REFUSAL_NN_NDIF_STACK"
_ANSWER_LIMIT = limit(120)


class NoStackError(Exception):
    """This process was not started by the stack, or the stack has refused an order."""


@dataclass(frozen=True)
class Stack:
    """Orders to the stack that runs this process.

    Parts are ``hub``, ``redis``, ``objects`` (the object store), ``api``, ``dispatcher``, ``ray`` and
    ``controller`` (commands that end when their work is done), ``auth-api`` with ``postgres`` behind
    it (started when asked for), and, to look at and to kill, ``actor`` (every deployed model; Ray
    starts it again), ``raylet`` and ``gcs``.
    """

    file: Path

    @classmethod
    def from_environment(cls) -> Stack:
        """The stack that runs this process.

        Raises
        ------
        NoStackError
            When there is none.
        """
        if VARIABLE not in os.environ:
            raise NoStackError("These tests need a running NDIF server: `make test-ndif`.")
        return cls(Path(os.environ[VARIABLE]))

    @property
    def state(self) -> dict[str, Any]:
        """What the stack has written about itself: urls, process ids, keys, folders."""
        return dict(json.loads(self.file.read_text(encoding="utf-8")))

    def url(self, name: str = "api") -> str:
        """The address of ``api``, ``auth-api``, ``hub`` or ``objects``."""
        return str(self.state["urls"][name])

    def key(self, kind: str) -> str:
        """A key for ``auth-api``: ``known`` or ``unknown`` to it."""
        return str(self.state["keys"][kind])

    def log(self, part: str) -> str:
        """A part's log so far."""
        return (Path(self.state["logs"]) / f"{part}.log").read_text(errors="replace")

    def pids(self, part: str) -> list[int]:
        """The processes of a part, its own first; empty when it does not run."""
        return list(self._order("pids", part))

    def answers(self, part: str) -> bool:
        """Whether a part is of use."""
        return bool(self._order("answers", part))

    def kill(self, part: str) -> list[int]:
        """Kill -9 a part; returns when its processes are gone."""
        return list(self._order("kill", part))

    def start(self, part: str) -> None:
        """Start a part and what it needs; returns when it answers. Nothing happens if it runs."""
        self._order("start", part)

    def restart(self, part: str) -> None:
        """Start a part again, killing it first if it runs (the dispatcher goes with redis)."""
        self._order("restart", part)

    def listening(self) -> list[str]:
        """Every listening socket of the stack's processes."""
        return list(self._order("listening"))

    def exposed(self) -> list[str]:
        """Those of them that other machines may reach; there must be none."""
        return list(self._order("exposed"))

    def _order(self, *words: str) -> Any:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_LIMIT)
            connection.connect(self.state["control"])
            with connection.makefile("rw") as stream:
                stream.write(json.dumps(words) + "\n")
                stream.flush()
                answer = json.loads(stream.readline())
        if "error" in answer:
            raise NoStackError(answer["error"])
        return answer["value"]
