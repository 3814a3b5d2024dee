"""Writing that leaves either the old file or the new one, and the checksums that tell a damaged one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathline.samplers.files import replacing

MANIFEST = "manifest.json"
_BLOCK = 1 << 20


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write an indented JSON object atomically; NaN and infinities are refused."""
    with replacing(path) as stream:
        json.dump(value, stream, indent=2, allow_nan=False)
        stream.write("\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    ValueError
        If the file is missing, is not JSON, or holds something other than an object; it is named.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value


def checksum(path: Path) -> str:
    """BLAKE2b digest of a file's bytes, 32 hex digits."""
    total = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def _contents(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)


def seal(folder: Path) -> None:
    """Write into `folder` the manifest of all its files with their checksums."""
    write_json(folder / MANIFEST, {str(f.relative_to(folder)): checksum(f) for f in _contents(folder)})


def damage(folder: Path) -> str | None:
    """Say what is wrong with a sealed folder, or None if every file is as it was written."""
    if not folder.is_dir():
        return "it does not exist"
    try:
        expected = read_json(folder / MANIFEST)
    except ValueError:
        return f"{MANIFEST} is missing or unreadable"
    for name, digest in expected.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if checksum(folder / name) != digest:
            return f"{name} does not have the contents that were written"
    return None


def replace_folder(temporary: Path, target: Path) -> None:
    """Rename a finished folder into place; one of the same name is removed only once it can be replaced."""
    if target.exists():
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
        os.replace(temporary, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(temporary, target)
