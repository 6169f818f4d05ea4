"""One process that has imported everything; each case runs in a child it forks, under a watchdog."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz import guard, material
from tests.fuzz.cases import Case, lay_out, snapshot
from tests.fuzz.verdict import KEY, Ended
from tests.patience import limit, slowness

BURNING_SECONDS, BLOCKED_SECONDS = 30, 12  # the second is multiplied by tests/patience.py
MEMORY, LARGEST = 8 << 30, 1 << 30
_OUTPUT = 4 << 20
_OURS = "refusal_nn."
_ROOT = Path(__file__).parents[2]
_SITE = """\
import os, sys
sys.path.insert(0, os.environ["FUZZ_ROOT"])
from tests.fuzz.guard import install
sys.path.remove(os.environ["FUZZ_ROOT"])
install(os.environ["FUZZ_FOLDER"], os.environ["FUZZ_RECORD"])
"""


class Warm:
    """The process that cases are forked from.

    Parameters
    ----------
    folder : Path
        Where material and the world of each case are made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.material = self.folder / "material"
        self.burning = int(BURNING_SECONDS * slowness())
        self._ended_in: list[str] = []
        self._called: list[str] = []
        _import_everything()
        material.make(self.material)
        (self.folder / "site").mkdir()
        (self.folder / "site" / "sitecustomize.py").write_text(_SITE, encoding="utf-8")
        self._watch_errors()
        self.whole = snapshot(self.material)
        assert threading.active_count() == 1, threading.enumerate()
        gc.collect()
        gc.freeze()  # children share these pages as long as nothing touches them

    def run(self, case: Case, *, process: bool = False) -> Ended:
        """Lay a case out, run it, take it away again.

        Parameters
        ----------
        case : Case
        process : bool
            Whether as ``python -m refusal_nn`` instead of in a forked child.
        """
        world = self.folder / "case"
        shutil.rmtree(world, ignore_errors=True)
        places = {name: world / name for name in ("home", "work", "tmp")}
        for place in places.values():
            place.mkdir(parents=True)
        lay_out(case, places["work"], self.material)
        before = {name: snapshot(place) for name, place in places.items()}
        environment = self._environment(world)
        begin = self._start_process if process else self._fork
        (world / "seen").touch()
        blocked, status, seconds = self._wait(begin(case, world, environment))
        seen = (world / "seen").read_text(encoding="utf-8").splitlines()
        notes, told = _read(seen)
        return Ended(
            code=os.waitstatus_to_exitcode(status),
            blocked=blocked,
            stdout=_content(world / "stdout"),
            stderr=_content(world / "stderr"),
            notes=notes,
            parsed=told.get("called", "") != "",
            reader="process" if process else told.get("ended", "done"),
            before=before,
            after={name: snapshot(place) for name, place in places.items()},
            seconds=seconds,
        )

    def _environment(self, world: Path) -> dict[str, str]:
        kept = {k: os.environ[k] for k in ("PATH", "LANG", "LC_ALL") if k in os.environ}
        return {
            **kept,
            "HOME": str(world / "home"),
            "TMPDIR": str(world / "tmp"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "NDIF_API_KEY": KEY,
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONPATH": f"{self.folder / 'site'}:{_ROOT}",
            "FUZZ_ROOT": str(_ROOT),
            "FUZZ_FOLDER": str(world),
            "FUZZ_RECORD": str(world / "seen"),
        }

    def _fork(self, case: Case, world: Path, environment: dict[str, str]) -> int:
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.setsid()
            os.environ.clear()
            os.environ.update(environment)
            import tempfile

            tempfile.tempdir = None
            os.chdir(world / "work")
            _redirect(world)
            _limit(self.burning)
            guard.install(str(world), str(world / "seen"))
            from refusal_nn.cli import main

            try:
                sys.argv = ["refusal-nn", *case.argv]
                main()
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
            self._tell(world / "seen")
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                try:
                    stream.flush()
                except Exception:
                    code = code or 120
            os._exit(code)
        raise AssertionError

    def _start_process(self, case: Case, world: Path, environment: dict[str, str]) -> int:
        burning = self.burning

        def prepare() -> None:
            os.setsid()
            _limit(burning)

        with (world / "stdout").open("wb") as out, (world / "stderr").open("wb") as err:
            started = subprocess.Popen(
                [sys.executable, "-m", "refusal_nn", *case.argv],
                cwd=world / "work",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                preexec_fn=prepare,
            )
        started.returncode = 0  # waited for below
        return started.pid

    def _wait(self, child: int) -> tuple[bool, int, float]:
        """Whether it was given up, its status and its processor time."""
        number = os.pidfd_open(child)
        try:
            ended = select.select([number], [], [], limit(BLOCKED_SECONDS))[0]
        finally:
            os.close(number)
        if not ended:
            os.killpg(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
        if ended:  # what it started ends with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        return not ended, status, used.ru_utime + used.ru_stime

    def _watch_errors(self) -> None:
        """Note where the last error of ours or of the parser was made, and which command was called."""
        import click

        from refusal_nn.errors import RefusalNNError

        ended, called = self._ended_in, self._called

        def noting(kind: type[Any]) -> None:
            plain: Callable[..., None] = kind.__init__

            def init(self: Any, *args: Any, **kwargs: Any) -> None:
                plain(self, *args, **kwargs)
                ended[:] = [_reader(sys._getframe(1))]

            kind.__init__ = init

        noting(RefusalNNError)
        noting(click.UsageError)
        noting(click.exceptions.Abort)
        command: Any = click.Command
        invoke = command.invoke

        def invoked(self: click.Command, context: click.Context) -> Any:
            if not isinstance(self, click.Group):
                called[:] = [context.command_path]
            return invoke(self, context)

        command.invoke = invoked

    def _tell(self, seen: Path) -> None:
        import json

        with seen.open("a", encoding="utf-8") as opened:
            for what, value in (("called", self._called), ("ended", self._ended_in)):
                if value:
                    opened.write(json.dumps([f"told {what}", value[0]]) + "\n")


def _reader(frame: types.FrameType | None) -> str:
    """The part of the package that a frame is in, beneath what all parts read with."""
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith(_OURS) and name not in ("refusal_nn._files", "refusal_nn.errors"):
            parts = name.split(".")
            if parts[1] == "cli":
                return f"cli {'config' if frame.f_code.co_name == 'read_config' else parts[-1].strip('_')}"
            return f"{parts[1]} {parts[2].strip('_')}" if len(parts) > 2 else parts[1].strip("_")
        if name.partition(".")[0] == "click":
            break
        frame = frame.f_back
    return "parser"


def _read(lines: list[str]) -> tuple[list[tuple[str, str]], dict[str, str]]:
    import json

    notes, told = [], {}
    for line in lines:
        what, value = json.loads(line)
        if what.startswith("told "):
            told[what.removeprefix("told ")] = value
        else:
            notes.append((what, value))
    return notes, told


def _content(path: Path) -> bytes:
    with path.open("rb") as opened:
        return opened.read(_OUTPUT)


def _redirect(world: Path) -> None:
    for number, name, flags in (
        (0, "/dev/null", os.O_RDONLY),
        (1, world / "stdout", os.O_WRONLY | os.O_CREAT),
        (2, world / "stderr", os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(name, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)


def _limit(burning: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (burning, burning + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _import_everything() -> None:
    """Load what any command loads, and each lazy part of it, without starting a thread."""
    import importlib
    import pkgutil

    import torch

    # by OMP_NUM_THREADS: after set_num_threads the first threads of a forked child race for its pool
    assert torch.get_num_threads() == 1
    import click.testing

    import refusal_nn
    import refusal_nn.cli

    for module in pkgutil.walk_packages(refusal_nn.__path__, "refusal_nn."):
        if (
            ".organisms." not in module.name
            and "worker" not in module.name
            and "__main__" not in module.name
        ):
            importlib.import_module(module.name)
    for name in refusal_nn.cli.NOUNS:
        importlib.import_module(f"refusal_nn.cli.{name}")
    for name in (
        "matplotlib.backends.backend_svg",
        "h5netcdf",
        "rich.table",
        "yaml",
        "scipy.stats",
    ):
        importlib.import_module(name)
    run = click.testing.CliRunner().invoke
    for words in (["models", "show", "planted-gate"], ["prompts", "stats", "tiny-bench"]):
        done = run(refusal_nn.cli.cli, words, prog_name="refusal-nn")
        assert done.exit_code == 0, done.output
