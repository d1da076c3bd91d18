"""The wheel: what is in it, that shipped files are found after a plain install, and that the pins hold together."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import cosched
from cosched import resources

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("cosched", "solvers", "telemetry")
FOLDERS = {"cosched/_config": "config", "cosched/_systemd": "systemd"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pip(*args: str, cwd: Path) -> None:
    """Run pip without the network; its output is the failure's message."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy, so that nothing left behind by an earlier build gets into it."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    for folder in (*PACKAGES, *FOLDERS.values()):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-index", "--no-build-isolation", "--no-deps", "--wheel-dir", str(work), ".", cwd=source)
    (built,) = work.glob("*.whl")
    return built


def files_below(folder: Path) -> set[str]:
    """Relative paths of all files but compiled ones."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_listed_packages_are_those_in_the_tree() -> None:
    there = {".".join(path.parent.relative_to(ROOT).parts) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    listed = set(PROJECT["tool"]["setuptools"]["packages"]) - {"cosched._config", "cosched._systemd"}
    assert listed == there, "pyproject.toml: [tool.setuptools] packages"
    for name in there:
        assert (ROOT / name.replace(".", "/") / "__init__.py").is_file()


def test_wheel_holds_code_and_shipped_files_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"{name}/{file}" for name in PACKAGES for file in files_below(ROOT / name)}
    for target, folder in FOLDERS.items():
        expected |= {f"{target}/{file}" for file in files_below(ROOT / folder)}
    assert inside == expected


def test_wheel_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
        head = archive.read(f"{info}/METADATA").decode()
        licence = archive.read(f"{info}/licenses/LICENSE").decode()
    assert f"\nVersion: {cosched.__version__}\n" in head
    assert "\nLicense-Expression: Apache-2.0\n" in head
    assert "\nRequires-Python: >=3.11\n" in head
    assert licence == (ROOT / "LICENSE").read_text()


@pytest.mark.slow
def test_shipped_files_are_found_after_a_plain_install(wheel: Path, tmp_path: Path) -> None:
    """A bare environment: the wheel alone, outside the checkout, whatever PYTHONPATH says."""
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    pip("--python", str(python), "install", "--no-index", "--no-deps", str(wheel), cwd=tmp_path)
    code = (
        "from cosched import resources as r\n"
        "print(r.__file__, r.config_dir(), r.systemd_dir(), r.config_file('devices', 'a100.toml').read_text(), sep='|')"
    )
    done = subprocess.run(
        [python, "-E", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    module, config, systemd, text = done.stdout.split("|", 3)
    assert Path(module).is_relative_to(tmp_path)
    assert Path(config) == Path(module).parent / "_config"
    assert Path(systemd) == Path(module).parent / "_systemd"
    assert text == (ROOT / "config" / "devices" / "a100.toml").read_text() + "\n"
    assert (tmp_path / "venv" / "bin" / "cosched").is_file()


def test_checkout_finds_its_own_folders() -> None:
    assert (resources.config_dir() / "devices").is_dir()
    assert resources.systemd_dir().is_dir()


def test_missing_shipped_file_names_those_there_are() -> None:
    with pytest.raises(resources.BadInput, match=r"config/devices/nokia\.toml: no such file; there are: a100\.toml, "):
        resources.config_file("devices", "nokia.toml")


def constraints() -> dict[str, str]:
    """Pinned version by normalised name; fails on a line of any other form than `name==version`."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][A-Za-z0-9.]*)", line)
            assert match, f"constraints.txt: {line!r} is not name==version"
            pins[normalised(match[1])] = match[2]
    return pins


def normalised(name: str) -> str:
    """PEP 503's form of a distribution's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_requirement_is_pinned_and_the_project_is_not() -> None:
    pins = constraints()
    project = PROJECT["project"]
    extras = [requirement for extra in project["optional-dependencies"].values() for requirement in extra]
    for requirement in [*project["dependencies"], *extras]:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert name
        assert normalised(name[0]) in pins, f"constraints.txt lacks {requirement}"
    assert "cosched" not in pins


def test_tests_run_with_the_pinned_versions() -> None:
    """The figures and golden values hold for these versions; setuptools only builds."""
    installed = {normalised(d.name): d.version.partition("+")[0] for d in metadata.distributions()}  # torch: 2.13.0+cpu
    pins = constraints()
    del pins["setuptools"]
    wrong = {n: (installed[n], v) for n, v in pins.items() if n in installed and installed[n] != v}
    assert not wrong, "installed, pinned"


@pytest.mark.slow
@pytest.mark.parametrize(
    "order",
    ["import cvxpy; from ortools.sat.python import cp_model", "from ortools.sat.python import cp_model; import cvxpy"],
)
def test_both_optimisers_load_in_either_order(order: str) -> None:
    """From 1.14 on, highspy clashes with the HiGHS inside ortools: the second import raises."""
    code = (
        f"{order}\n"
        "x = cvxpy.Variable(); cvxpy.Problem(cvxpy.Minimize(x), [x >= 2]).solve()\n"
        "assert abs(x.value - 2) < 1e-6\n"
        "m = cp_model.CpModel(); y = m.new_int_var(0, 9, 'y'); m.maximize(y)\n"
        "s = cp_model.CpSolver(); s.parameters.num_workers = 1; s.solve(m)\n"
        "assert s.value(y) == 9\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
