"""The root command: start-up, errors to exit codes, the same program by every door."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import refusal_nn
import refusal_nn.cli as package
from refusal_nn.cli import NOUNS, cli
from refusal_nn.errors import BackendError, RequestError, VerificationError, WorkError
from tests.patience import limit, slowness

HEAVY = (
    "torch",
    "transformers",
    "nnsight",
    "numpy",
    "pandas",
    "xarray",
    "zarr",
    "scipy",
    "sklearn",
    "matplotlib",
    "rich",
    "yaml",
)
FOLDER = Path(package.__file__).parent


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=limit(10),
        cwd=Path(refusal_nn.__file__).parents[1],
    )


def test_the_nouns_are_exactly_the_public_files_of_the_folder() -> None:
    files = {path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_")}
    assert set(NOUNS) == files
    assert len(NOUNS) == len(set(NOUNS))


@pytest.mark.parametrize("noun", NOUNS)
def test_every_noun_resolves_to_a_command_of_that_name(noun: str) -> None:
    command = cli.get_command(click.Context(cli), noun)
    assert isinstance(command, click.Command)
    assert command.name == noun


@pytest.mark.parametrize("arguments", [["--help"], *([noun, "--help"] for noun in NOUNS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from refusal_nn.cli import cli\n"
        f"cli({arguments!r}, prog_name='refusal-nn', standalone_mode=False)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    done = _python(code)
    assert done.returncode == 0, done.stderr
    assert "Usage: refusal-nn" in done.stdout
    assert done.stderr.strip() == "[]"


def test_help_takes_no_more_than_a_third_of_a_second_of_work() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = _python("from refusal_nn.cli import main; import sys; sys.argv[1:] = ['-h']; main()")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        # processor time: other work on the machine does not count
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) <= 0.35 * slowness()


def test_python_m_is_the_same_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "refusal_nn", "--version"],
        capture_output=True,
        text=True,
        timeout=limit(10),
        cwd=Path(refusal_nn.__file__).parents[1],
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"refusal-nn, version {refusal_nn.__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("no model folder at 'x'; check the path."), 2),
        (BackendError("the job failed."), 1),
        (VerificationError("one file differs."), 1),
        (WorkError("the disk is full."), 1),
    ],
)
def test_an_error_of_ours_is_one_message_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    _run_instead(monkeypatch, error)
    done = CliRunner().invoke(cli, ["models", "list"])
    assert done.exit_code == code
    assert done.stderr == f"Error: {error}\n"
    assert done.stdout == ""


def test_an_interrupt_exits_130_and_says_how_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    _run_instead(monkeypatch, KeyboardInterrupt())
    done = CliRunner().invoke(cli, ["models", "list"])
    assert done.exit_code == 130
    assert "refusal-nn runs resume NAME" in done.stderr


def test_an_unexpected_error_is_called_a_bug_and_keeps_its_traceback_for_debugging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("refusal_nn.models.EMBEDDED", None)
    done = CliRunner().invoke(cli, ["models", "list"])
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: AttributeError at refusal_nn.cli.models:")
    assert "this is a bug of refusal-nn; report it" in done.stderr
    assert done.stderr.count("\n") == 1
    shown = _python(
        "import refusal_nn.models; refusal_nn.models.EMBEDDED = None\n"
        "from refusal_nn.cli import cli\n"
        "cli(['--log-level', 'debug', 'models', 'list'])"
    )
    assert "Traceback (most recent call last)" in shown.stderr
    assert "this is a bug" in shown.stderr


@pytest.mark.parametrize(
    "arguments",
    [["modles"], ["models", "lst"], ["models", "list", "--jsn"], ["--log-level", "loud", "models"]],
)
def test_a_wrong_request_exits_2(arguments: list[str]) -> None:
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "Error: " in done.stderr


def test_no_command_defines_v_or_verbose_because_nnsight_reads_them_from_argv() -> None:
    def options(command: click.Command, context: click.Context) -> set[str]:
        found = {opt for param in command.params for opt in (*param.opts, *param.secondary_opts)}
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                child = command.get_command(context, name)
                assert child is not None
                found |= options(child, click.Context(child, parent=context))
        return found

    found = options(cli, click.Context(cli))
    assert "--log-level" in found
    assert not found & {"-v", "--verbose"}


def test_what_must_be_typed_is_no_value_of_a_file() -> None:
    from refusal_nn.cli._config import TYPED_ONLY

    typed = {"--yes", "--overwrite", "--trust-remote-code"}
    found = set()
    for noun in NOUNS:
        command = cli.get_command(click.Context(cli), noun)
        verbs = command.commands.values() if isinstance(command, click.Group) else [command]
        found |= {opt for verb in verbs if verb for p in verb.params for opt in p.opts}
    assert typed <= found
    assert typed <= {f"--{option}" for option in TYPED_ONLY}


def _run_instead(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(self: click.Group, ctx: click.Context) -> None:
        raise error

    monkeypatch.setattr(click.Group, "invoke", fail)
