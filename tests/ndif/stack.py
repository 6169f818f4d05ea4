"""A real NDIF server on loopback, without a GPU, for as long as a command runs.

    python -m tests.ndif.stack [--venv DIR] [--logs DIR] [-- COMMAND ...]

starts redis, an object store, Ray, the controller, the API, the dispatcher and a hub with the embedded
models, runs COMMAND against them (without one, waits to be interrupted) and ends with its status.

Nothing outlives it. Two processes watch each other: the *guardian*, whose id the caller sees, and below
it the *supervisor*, in a session of its own, which is the parent of every other process. The supervisor
stops everything when the command ends, when it is asked to (SIGINT, SIGTERM, SIGHUP to either) and,
by a signal from the kernel, when the guardian is killed; if it is killed itself, its children fall to
the guardian, which ends them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from tests.ndif import hub_content, processes
from tests.ndif.layout import Layout, free_ports, prepare, require_server
from tests.ndif.parts import auth_parts, server_parts
from tests.ndif.supervisor import StackError, Supervisor, control_socket, serve_one
from tests.patience import limit

ROOT = Path(__file__).resolve().parents[2]
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_COMMAND_GRACE = limit(5)


class _Interrupted(BaseException):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        self.number = number


def main(arguments: list[str] | None = None) -> int:
    """Run the stack; returns the exit status of the command, 128 + N when a signal N ended it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv-ndif", help="the server's own")
    parser.add_argument("--logs", type=Path, default=ROOT / "build" / "ndif")
    parser.add_argument("--only", nargs="*", metavar="PART", help="start these parts and no other")
    parser.add_argument("--grace", type=float, default=2.0, help="seconds from SIGTERM to SIGKILL")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args(arguments)
    if sys.platform != "linux":
        parser.error("needs Linux: it follows its processes through /proc")

    # not in TMPDIR: Ray puts sockets below, and their paths may have 107 characters
    scratch = Path(tempfile.mkdtemp(prefix="ndif-", dir="/tmp"))
    scratch.chmod(0o711)  # the database runs as another user when this one is root
    layout = Layout(options.venv.resolve(), scratch, options.logs.resolve(), free_ports())
    processes.adopt_orphans()
    guardian = os.getpid()
    # held back until both sides have said what a signal means to them
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    child = os.fork()
    if child == 0:
        os._exit(_supervise(layout, options, guardian))
    try:
        return _guard(child)
    finally:
        left = processes.end_descendants(grace=options.grace)
        shutil.rmtree(scratch, ignore_errors=True)
        if left:
            print(f"[stack] could not end {sorted(left)}", file=sys.stderr)


def _guard(child: int) -> int:
    """Pass signals on to the supervisor until it ends."""
    for number in _STOPPING:
        signal.signal(number, lambda number, _frame: _signal(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
    _, status = os.waitpid(child, 0)
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        print(f"[stack] its supervisor was ended by signal {-code}", file=sys.stderr)
        return 128 - code
    return code


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _supervise(layout: Layout, options: argparse.Namespace, guardian: int) -> int:
    """Start everything, run the command, stop everything; returns the exit status."""
    begin = time.monotonic()
    layout.logs.mkdir(parents=True, exist_ok=True)
    log = layout.logs / "stack.log"
    log.write_text("", encoding="utf-8")

    def say(text: str) -> None:
        line = f"[stack {time.monotonic() - begin:5.1f} s] {text}"
        with log.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        if supervisor.command is None or supervisor.command.poll() is not None:
            try:  # while the command runs, the screen is its own
                print(line, flush=True)
            except OSError:  # nobody reads it any more
                return

    def interrupt(number: int, _frame: object) -> NoReturn:
        for each in _STOPPING:
            signal.signal(each, signal.SIG_IGN)
        raise _Interrupted(number)

    os.setsid()  # a signal to the guardian's group, as from a terminal, reaches the guardian alone
    processes.adopt_orphans()
    for number in _STOPPING:
        signal.signal(number, interrupt)
    supervisor = Supervisor(layout, {**server_parts(layout), **auth_parts(layout)}, say)
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)
        processes.die_with_parent(guardian)
        status = _run(supervisor, options.only, options.command)
    except _Interrupted as error:
        say(f"interrupted by {signal.Signals(error.number).name}")
        status = 128 + error.number
        _end_command(supervisor, error.number)
    except (StackError, SystemExit) as error:
        say(str(error))
    finally:
        for number in _STOPPING:
            signal.signal(number, signal.SIG_IGN)
        left = processes.end_descendants(grace=options.grace, managed=supervisor.managed())
        if status:
            _keep_ray_logs(layout)
        shutil.rmtree(layout.scratch, ignore_errors=True)
        say(f"stopped{f'; still there: {sorted(left)}' if left else ''}")
    return status


def _keep_ray_logs(layout: Layout) -> None:
    """The model actors' own logs, which would go with the scratch folder."""
    for session in (layout.scratch / "ray").glob("session_2*/logs"):
        shutil.copytree(session, layout.logs / "ray", symlinks=True, dirs_exist_ok=True)


def _run(supervisor: Supervisor, only: list[str] | None, command: list[str]) -> int:
    layout = supervisor.layout
    if only is None:
        require_server(layout)
    prepare(layout)
    repositories = hub_content.fill(layout.scratch / "hub")
    supervisor.start_all(list(server_parts(layout)) if only is None else only)
    server = control_socket(layout.control)
    supervisor.write_state()
    _assert_loopback(supervisor, "before the command")
    supervisor.say(f"the server is {layout.url('api')}, with {', '.join(repositories)}")
    if command:
        supervisor.command = subprocess.Popen(command, env=layout.client_environment())
    else:
        for name, value in layout.client_settings().items():
            supervisor.say(f"export {name}={value}")
    while supervisor.command is None or supervisor.command.poll() is None:
        try:
            serve_one(supervisor, server)
        except TimeoutError:
            processes.reap(supervisor.managed())
    _assert_loopback(supervisor, "after the command")
    code = supervisor.command.returncode
    return code if code >= 0 else 128 - code


def _assert_loopback(supervisor: Supervisor, when: str) -> None:
    exposed = supervisor.exposed()
    if exposed:
        raise StackError(f"Not only loopback can reach, {when}: {'; '.join(exposed)}")
    supervisor.say(f"all {len(supervisor.listening())} listening sockets are loopback, {when}")


def _end_command(supervisor: Supervisor, number: int) -> None:
    """Let the command end by itself, as a test run does that prints what it has so far."""
    if supervisor.command is not None and supervisor.command.poll() is None:
        supervisor.command.send_signal(number)
        try:
            supervisor.command.wait(_COMMAND_GRACE)
        except subprocess.TimeoutExpired:
            supervisor.say(f"the command is still there after {_COMMAND_GRACE:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
