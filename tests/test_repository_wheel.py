"""The wheel holds every file of the packages and works where the repository is out of reach."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.repository import LAYERS, PROJECT, ROOT

VERSION = PROJECT["project"]["version"]

# Prints one line for each module: its name and the file it came from.
IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    print(name, importlib.import_module(name).__file__)
"""


def call(*command: str | Path, cwd: Path) -> str:
    """Run a command without network or Python settings of the caller, and return its output."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    settings = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=kept | settings, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy, because setuptools takes up what an earlier build left in the source folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in LAYERS:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    call(*build, "--wheel-dir", out, source, cwd=out)
    (built,) = out.glob("pathline-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment that holds the wheel alone and sees this environment's other packages.

    A folder named in a .pth file is searched for packages, but .pth files inside it are not read: the hook of
    an editable install of pathline in this environment stays off.
    """
    folder = tmp_path_factory.mktemp("environment")
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    purelib = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    packages = Path(purelib.strip())
    assert packages.is_relative_to(folder)
    parents = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "dependencies.pth").write_text("\n".join(parents) + "\n")
    pip = (sys.executable, "-m", "pip", "--python", python)
    call(*pip, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    return python


def test_wheel_holds_every_file_of_the_packages_and_the_license(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = archive.namelist()
    files = (path for package in LAYERS for path in (ROOT / package).rglob("*") if path.is_file())
    wanted = {f"pathline/{path.relative_to(ROOT)}" for path in files if "__pycache__" not in path.parts}
    assert {name for name in held if name.startswith("pathline/")} == wanted
    assert any(name.endswith("licenses/LICENSE") for name in held)


def test_every_module_imports_from_the_wheel(wheel: Path, python: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = [Path(name) for name in archive.namelist() if name.endswith(".py")]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files]
    modules = sorted(name for name in names if not name.endswith(".__main__"))
    assert {f"pathline.{package}" for package in LAYERS} < set(modules)
    lines = call(python, "-c", IMPORT_ALL, *modules, cwd=tmp_path).splitlines()
    imported = {name: Path(file) for name, file in (line.split(" ", 1) for line in lines)}
    assert sorted(imported) == modules
    assert all(file.is_relative_to(python.parents[1]) for file in imported.values()), imported


def test_command_of_the_wheel_prints_its_version(python: Path, tmp_path: Path) -> None:
    assert VERSION in call(python.parent / "pathline", "--version", cwd=tmp_path)
    assert VERSION in call(python, "-m", "pathline.evals", "--version", cwd=tmp_path)
