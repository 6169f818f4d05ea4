"""The stack ends what it has started, however it ends; with the hub alone, which starts in no time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ndif import processes
from tests.ndif.control import NoStackError, Stack
from tests.patience import limit, wait_for

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
ROOT = Path(__file__).resolve().parents[2]

# Leaves a daemon behind that has its own session, ignores SIGTERM and is nobody's child.
COMMAND = """
import os, subprocess, sys, time
daemon = "import os, signal, sys, time; os.setsid(); signal.signal(15, signal.SIG_IGN); "
daemon += "open(sys.argv[1] + '.new', 'w').write(os.environ['REFUSAL_NN_NDIF_STACK']); "
daemon += "os.rename(sys.argv[1] + '.new', sys.argv[1]); time.sleep(10 ** 6)"
middle = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"
subprocess.run([sys.executable, "-c", middle, sys.executable, "-c", daemon, sys.argv[1]])
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""


@dataclass
class Running:
    """A stack in a process of its own."""

    process: subprocess.Popen[str]
    stack: Stack
    seen: dict[int, int | None] = field(default_factory=dict)

    @property
    def supervisor(self) -> int:
        return int(self.stack.state["supervisor"])

    def gone(self) -> bool:
        """Whether all that was seen of it is gone, by process id and start time."""
        return not any(
            started is not None and processes.start_time(pid) == started and _alive(pid)
            for pid, started in self.seen.items()
        )


def _alive(pid: int) -> bool:
    return any(row.pid == pid and row.state not in "ZX" for row in processes.table())


@contextmanager
def _stack(
    tmp_path: Path, then: str = "import time; time.sleep(10 ** 6)", *only: str
) -> Iterator[Running]:
    marker = tmp_path / "marker"
    command = [sys.executable, "-c", COMMAND + then, str(marker)]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.ndif.stack", "--venv", sys.prefix),
            *("--logs", str(tmp_path / "logs"), "--grace", "0.2"),
            *("--only", *(only or ("hub",))),
            *("--", *command),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    running: Running | None = None
    try:
        wait_for(lambda: marker.exists() or process.poll() is not None, "the command")
        state = Path(marker.read_text()) if marker.exists() else tmp_path / "none"
        running = Running(process, Stack(state))
        pids = [process.pid, *processes.descendants(process.pid)]
        running.seen = {pid: processes.start_time(pid) for pid in pids}
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(limit(60))
        for pid, started in running.seen.items() if running else ():
            if started is not None and processes.start_time(pid) == started:  # a test has failed
                os.kill(pid, signal.SIGKILL)
        process.communicate(timeout=limit(60))


def _wait_until_gone(running: Running) -> None:
    def left() -> list[tuple[int, str]]:
        return [(pid, processes.command_line(pid)) for pid in running.seen if _alive(pid)]

    wait_for(running.gone, lambda: f"the end of {left()}", 30)
    scratch = running.stack.file.parent
    wait_for(lambda: not scratch.exists(), f"{scratch} to be removed", 30)


def test_the_command_s_status_is_the_stack_s_and_nothing_is_left(tmp_path: Path) -> None:
    # a file of its own: taking the marker away could come before the command has seen it
    then = "while not os.path.exists(sys.argv[1] + '.end'): time.sleep(0.01)\nsys.exit(3)"
    with _stack(tmp_path, then) as running:
        # guardian, supervisor, hub, command, daemon
        assert len(running.seen) == 5
        (tmp_path / "marker.end").touch()
        assert running.process.wait(limit(60)) == 3
        _wait_until_gone(running)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_stack_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    with _stack(tmp_path) as running:
        running.process.send_signal(number)
        assert running.process.wait(limit(60)) == 128 + number
        _wait_until_gone(running)


def test_an_interrupted_command_may_finish_what_it_prints(tmp_path: Path) -> None:
    then = """
try:
    open(sys.argv[1] + ".trying", "w").close()
    time.sleep(10 ** 6)
except KeyboardInterrupt:
    time.sleep(0.5)
    print("finished", flush=True)
"""
    with _stack(tmp_path, then) as running:
        wait_for((tmp_path / "marker.trying").exists, "the command to get so far")
        running.process.send_signal(signal.SIGINT)
        output, _ = running.process.communicate(timeout=limit(60))
    assert "finished" in output.splitlines()


def test_killing_the_stack_s_whole_process_group_leaves_nothing(tmp_path: Path) -> None:
    with _stack(tmp_path) as running:
        os.killpg(running.process.pid, signal.SIGKILL)
        assert running.process.wait(limit(60)) == -signal.SIGKILL
        _wait_until_gone(running)


def test_killing_the_supervisor_leaves_nothing(tmp_path: Path) -> None:
    with _stack(tmp_path) as running:
        os.kill(running.supervisor, signal.SIGKILL)
        assert running.process.wait(limit(60)) == 128 + signal.SIGKILL
        _wait_until_gone(running)


def test_a_part_that_is_killed_can_be_started_again(tmp_path: Path) -> None:
    with _stack(tmp_path) as running:
        stack = running.stack
        (first,) = stack.pids("hub")
        assert stack.answers("hub")
        assert stack.kill("hub") == [first]
        assert stack.pids("hub") == []
        assert not stack.answers("hub")
        with pytest.raises(NoStackError, match="hub is not running"):
            stack.kill("hub")
        stack.start("hub")
        (second,) = stack.pids("hub")
        assert second != first
        stack.restart("hub")
        assert stack.pids("hub") != [second]
        assert stack.answers("hub")
        assert stack.state["pids"]["hub"] == stack.pids("hub")


def test_an_order_that_makes_no_sense_is_refused_and_the_stack_goes_on(tmp_path: Path) -> None:
    with _stack(tmp_path) as running:
        with pytest.raises(NoStackError, match="no part 'hup'; there are hub, redis"):
            running.stack.pids("hup")
        with pytest.raises(NoStackError, match="takes no order 'write_state'"):
            running.stack._order("write_state")
        assert running.stack.exposed() == []
        assert len(running.stack.listening()) == 1


def test_a_socket_that_others_can_reach_fails_the_run(tmp_path: Path) -> None:
    then = """
import socket
server = socket.socket(); server.bind(("0.0.0.0", 0)); server.listen()
if os.fork() == 0:
    time.sleep(10 ** 6)
"""
    with _stack(tmp_path, then) as running:
        output, _ = running.process.communicate(timeout=limit(60))
        assert running.process.returncode == 1
        assert "Not only loopback can reach, after the command: 0.0.0.0:" in output
        _wait_until_gone(running)


def test_a_part_that_cannot_be_started_stops_the_others(tmp_path: Path) -> None:
    with _stack(tmp_path, "", "hub", "objects") as running:
        output, _ = running.process.communicate(timeout=limit(60))
    assert running.process.returncode == 1
    assert "objects cannot be started" in output
    assert "stopped" in output.splitlines()[-1]


def test_without_the_server_the_stack_says_how_to_install_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [*(sys.executable, "-m", "tests.ndif.stack", "--venv", str(tmp_path)), "--", "true"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit(60),
    )
    assert done.returncode == 1
    assert "`make ndif-env` installs it" in done.stdout


def test_the_state_file_names_the_keys_and_addresses(tmp_path: Path) -> None:
    with _stack(tmp_path) as running:
        state = json.loads(running.stack.file.read_text())
        assert running.stack.url("hub") == state["urls"]["hub"]
        assert running.stack.key("known") != running.stack.key("unknown")
