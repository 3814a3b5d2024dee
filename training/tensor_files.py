"""Tensors in safetensors files that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor


@contextmanager
def written_or_removed(temporary: Path, target: Path) -> Iterator[None]:
    """Remove a temporary file or folder if the block fails, such as on a full disk, and say what was to be written.

    Raises
    ------
    OSError
        In place of the errors that torch and safetensors raise when they cannot write.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
        raise OSError(f"{target} cannot be written: {error}") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors under a temporary name, then rename the file into place; folders are made."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with written_or_removed(temporary, path):
        save_file(plain, temporary, metadata=dict(metadata or {}))
        temporary.chmod(0o644)  # safetensors makes private files; results are meant to be shared
        os.replace(temporary, path)


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of such a file.

    Raises
    ------
    ValueError
        If it is missing or damaged; it is named.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as content:
            return dict(content.metadata() or {})
    except Exception as error:  # safetensors and the system raise their own
        raise ValueError(f"{path} cannot be read: {error}") from error


def read_tensors(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Tensors of such a file; errors as of `read_metadata`."""
    from safetensors.torch import load_file

    try:
        return load_file(path, device=str(device))
    except Exception as error:  # safetensors and the system raise their own
        raise ValueError(f"{path} cannot be read: {error}") from error
