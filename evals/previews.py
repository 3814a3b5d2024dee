"""A few samples of every result, kept beside its record file for reports."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .files import read_npz
from .images import enlarge, save_samples, tile


def preview_path(records: str | os.PathLike[str], key: str) -> Path:
    """Where the samples of a record (or of a converged reference) are kept."""
    file = Path(records)
    return file.with_name(f"{file.stem}-samples") / f"{key}.npz"


def save_preview(records: str | os.PathLike[str], key: str, samples: torch.Tensor, keep: int) -> None:
    """Keep the first ``keep`` samples if they are images; vectors are not kept."""
    if keep and samples.ndim == 4 and samples.shape[1] in (1, 3):
        save_samples(preview_path(records, key), samples[:keep])


def load_preview(records: Sequence[Path], key: str, count: int) -> np.ndarray | None:
    """A mosaic of the first ``count`` kept samples, two rows, or None where there are none to be read."""
    for file in records:
        path = preview_path(file, key)
        if not path.exists():
            continue
        try:
            array = read_npz(path)["arr_0"][:count]
        except (ValueError, KeyError):
            continue  # a preview is an ornament: a damaged one must not cost the report
        return tile(enlarge(array), columns=max(1, len(array) // 2), pad=2)
    return None
