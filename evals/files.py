"""Small file helpers: atomic writing, canonical JSON and content hashes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from pathline.samplers.files import replacing


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path, "w") as stream:
        stream.write(text)


def read_npz(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of an .npz; nothing in it is executed.

    Raises
    ------
    ValueError
        If the file is absent or damaged; the message names it.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"file {file} does not exist")
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as data:
            return {key: data[key] for key in data.files}
    except Exception as error:  # numpy, zipfile and zlib each have their own errors for the same thing
        raise ValueError(f"file {file} cannot be read as .npz: {error}") from error


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text (NaN and inf are refused)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any, length: int = 12) -> str:
    """First ``length`` hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def file_digest(paths: list[Path], length: int = 12) -> str:
    """First ``length`` hex digits of the SHA-256 over the contents of several files, in name order."""
    total = hashlib.sha256()
    for path in sorted(paths):
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                total.update(block)
    return total.hexdigest()[:length]
