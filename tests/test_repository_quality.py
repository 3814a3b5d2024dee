"""Lint and types, with the settings of pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from support.repository import LAYERS, ROOT


def check(*command: str, cwd: Path) -> None:
    """Run a checker of this environment and fail with what it prints."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command[:2])}:\n{done.stdout}{done.stderr}"


def test_lint() -> None:
    check("ruff", "check", "--output-format", "concise", ".", cwd=ROOT)


def test_types(tmp_path: Path) -> None:
    # Checkers do not follow the hook of an editable install: they get a folder in which pathline.x is a path.
    (tmp_path / "pathline").mkdir()
    for package in LAYERS:
        (tmp_path / "pathline" / package).symlink_to(ROOT / package, target_is_directory=True)
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    check("mypy", *settings, "-p", "pathline", cwd=tmp_path)
