from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys

import pytest

from tests.ndif import processes
from tests.ndif.processes import Listener
from tests.patience import limit, wait_for

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_descendants_are_children_and_their_children() -> None:
    with subprocess.Popen(
        ["bash", "-c", "sleep infinity & echo $!; wait"], stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        grandchild = int(shell.stdout.readline())
        assert processes.descendants(shell.pid) == {grandchild}
        assert {shell.pid, grandchild} <= processes.descendants(os.getpid())
        os.kill(grandchild, 9)
        shell.kill()


def test_a_zombie_is_no_longer_running() -> None:
    with subprocess.Popen(["true"]) as child:
        # its memory, and so its command line, goes a moment before its state is that of a zombie
        wait_for(lambda: processes.state(child.pid) == "Z", "a zombie")
        assert child.pid not in processes.descendants(os.getpid())
        assert child.pid in processes.descendants(os.getpid(), zombies=True)


@pytest.mark.parametrize(
    ("family", "bound", "loopback"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "127.1.2.3", True),
        (socket.AF_INET, "0.0.0.0", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "::ffff:127.0.0.1", True),
        (socket.AF_INET6, "::", False),
    ],
)
def test_a_listening_socket_is_found_with_its_address(
    family: socket.AddressFamily, bound: str, loopback: bool
) -> None:
    with socket.socket(family) as server:
        try:
            server.bind((bound, 0))
        except OSError:
            pytest.skip(f"this machine cannot bind {bound}")
        port = server.getsockname()[1]
        assert port not in {one.port for one in processes.listeners([os.getpid()])}
        server.listen()
        (found,) = [one for one in processes.listeners([os.getpid()]) if one.port == port]
    assert (str(found.address), found.pid, found.loopback) == (
        str(ipaddress.ip_address(bound)),
        os.getpid(),
        loopback,
    )


def test_sockets_of_other_processes_are_not_ours() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert port not in {one.port for one in processes.listeners([os.getppid()])}


def test_an_address_of_the_network_is_not_loopback() -> None:
    assert not Listener(ipaddress.ip_address("192.0.2.7"), 80, 1).loopback


def test_everything_below_is_ended_even_what_ignores_sigterm_and_has_left_its_parent() -> None:
    program = """
import os, subprocess, sys, time
from tests.ndif import processes
processes.adopt_orphans()
stubborn = "import os, signal, time; os.setsid(); signal.signal(15, signal.SIG_IGN); "
stubborn += "print('ready', flush=True); time.sleep(10 ** 6)"
launch = [sys.executable, "-c", stubborn]
middle = "import subprocess, sys; subprocess.Popen(sys.argv[1:])"  # ends, its child stays
with subprocess.Popen(
    [sys.executable, "-c", middle, *launch], stdout=subprocess.PIPE, text=True
) as parent:
    parent.stdout.readline()
    parent.wait()
    before = processes.descendants(os.getpid())
    left = processes.end_descendants(grace=0.3)
print(len(before), left or "none", processes.descendants(os.getpid(), zombies=True) or "none")
"""
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))  # noqa: PTH120
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=limit(20), cwd=root
    )
    assert (done.returncode, done.stdout) == (0, "1 none none\n"), done.stderr
