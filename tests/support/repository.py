"""What the repository's own tests share: where it is, its packages, its settings."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAYERS = ("interpolants", "samplers", "training", "evals")  # each may import itself and what stands before it
