"""The `cosched` program's frame: help, exit codes, errors as one line, and what a bare `--help` may import."""

from __future__ import annotations

import errno
import importlib.util
import io
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable

import pytest
import typer

import cosched
from cosched.cli import common, main
from cosched.errors import BadInput
from solvers.errors import BadProblem, UnknownSolver
from telemetry.errors import TelemetryError

HEAVY = {
    "cvxpy",
    "highspy",
    "matplotlib",
    "mcap",
    "numba",
    "numpy",
    "ortools",
    "pandas",
    "plotly",
    "ray",
    "scipy",
    "zmq",
}


def run(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a user does, on a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "cosched.cli.main", *args],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "100"} | environ,
        timeout=60,
        check=False,
    )


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Return a function that registers its argument as the command `probe` for this test."""

    def register(action: Callable[[], None]) -> None:
        module = types.ModuleType("cosched.cli.probe")
        module.__dict__["probe"] = action
        monkeypatch.setitem(sys.modules, "cosched.cli.probe", module)
        monkeypatch.setitem(main.COMMANDS, "probe", main.Command("cosched.cli.probe:probe", "Probe."))

    return register


def exit_code(*args: str) -> int:
    """Run the program in this process and return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main.main(list(args))
    code = caught.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_of_every_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(name, "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: cosched {name}")
    assert "Example" in out
    assert f"cosched {name} " in out.split("Example", 1)[1]


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_line_is_the_first_of_the_docstring(name: str) -> None:
    command = main.load(name)
    assert command.help.splitlines()[0] == main.COMMANDS[name].help
    assert len(main.COMMANDS[name].help) <= 64, "would be cut on a terminal of 80 columns"


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from cosched.cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    for name, entry in main.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert entry.help in done.stdout
    imported = set(json.loads(done.stderr.replace("'", '"')))
    assert not imported & HEAVY
    assert "rich" not in imported, "plain help needs no rich"


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"cosched {cosched.__version__}\n"


def test_no_argument_prints_help_and_counts_as_wrong_usage() -> None:
    done = run()
    assert done.returncode == 2
    assert "Commands:" in done.stdout + done.stderr


def test_unknown_command_names_the_nearest() -> None:
    done = run("reply")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage: cosched" in done.stderr
    assert "Did you mean 'replay'?" in done.stderr


def test_unknown_option_is_wrong_usage() -> None:
    done = run("--verson")
    assert done.returncode == 2
    assert "No such option: --verson" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", main.COMMANDS)
def test_unknown_option_of_every_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(name, "--no-such-option") == 2
    assert "Usage: cosched" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BadInput("a.toml: cells: at least one is needed"), "a.toml: cells: at least one is needed"),
        (BadProblem("tasks[0]", "no points"), "tasks[0]: no points"),
        (UnknownSolver("unknown solver 'x'"), "unknown solver 'x'"),
        (TelemetryError("a.mcap: truncated"), "a.mcap: truncated"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "x.json"), "x.json: No such file or directory"),
        (PermissionError(errno.EACCES, "Permission denied", "x.json"), "x.json: Permission denied"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "configs"), "configs: Is a directory"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (BadInput("two\nlines and \x1b[31mred"), "two lines and [31mred"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    error: Exception,
    line: str,
    probe: Callable[[Callable[[], None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise error

    probe(fail)
    assert exit_code("probe") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"cosched: error: {line}\n"


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EIO, "Input/output error"), KeyError("x")])
def test_our_own_faults_keep_their_traceback(error: Exception, probe: Callable[[Callable[[], None]], None]) -> None:
    def fail() -> None:
        raise error

    probe(fail)
    with pytest.raises(type(error)):
        main.main(["probe"])


def test_interrupt_exits_130_without_a_word(
    probe: Callable[[Callable[[], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    probe(interrupted)
    assert exit_code("probe") == 130
    assert "Traceback" not in capsys.readouterr().err


def test_exit_code_1_passes_through(probe: Callable[[Callable[[], None]], None]) -> None:
    def unmet() -> None:
        raise typer.Exit(common.EXIT_FAILED)

    probe(unmet)
    assert exit_code("probe") == 1


def test_reader_that_goes_away_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "cosched.cli.main", "--help"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == ""


def test_nothing_is_coloured_on_a_pipe_or_where_colour_is_refused() -> None:
    for environ in ({}, {"NO_COLOR": "1"}):
        done = run("reply", **environ)
        assert "\x1b" not in done.stdout + done.stderr


def test_completion_lists_the_commands() -> None:
    done = run(_COSCHED_COMPLETE="complete_bash", COMP_WORDS="cosched s", COMP_CWORD="1")
    assert done.stdout.split() == ["simulate", "solve", "serve"]


def test_every_command_has_a_file_of_its_own() -> None:
    modules = [entry.target.split(":")[0] for entry in main.COMMANDS.values()]
    assert len(set(modules)) == len(modules)
    for module in modules:
        assert importlib.util.find_spec(module) is not None, f"{module} is registered but not there"


def test_json_has_null_for_what_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    common.print_json({"v": 1, "gap": float("nan"), "late": float("inf")})
    assert json.loads(capsys.readouterr().out) == {"v": 1, "gap": None, "late": None}


def test_progress_yields_everything_and_draws_nothing_on_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(common.progress(range(3), "counting")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    """A stderr that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("patience_s", "drawn"), [(0.0, True), (3600.0, False)])
def test_progress_draws_on_a_terminal_once_patience_ends(
    patience_s: float, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(common, "PATIENCE_S", patience_s)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(common.progress(range(3), "counting")) == [0, 1, 2]
    assert ("counting" in terminal.getvalue()) is drawn
