"""Latents of an autoencoder as a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import Batch, split_indices
from .vector_conditions import read_vectors


@dataclass(frozen=True)
class LatentSet:
    """Latents held in memory, scaled to about unit variance as they are handed out.

    Parameters
    ----------
    name : str
    values : float Tensor (N, C, H, W)
    targets : int64 Tensor (N,), or None
    classes : tuple of str
    scale, shift : float
        (latent − shift)·scale is what the network learns; those of the autoencoder's configuration in diffusers.
    vectors : float Tensor (N, K), or None
        Conditions of the latents.
    """

    name: str
    values: Tensor
    targets: Tensor | None = None
    classes: tuple[str, ...] = ()
    scale: float = 1.0
    shift: float = 0.0
    vectors: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a latent."""
        channels, height, width = self.values.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.values)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Scaled latents and labels at these indices."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        values = (self.values[where].float() - self.shift) * self.scale
        labels = None if self.targets is None else self.targets[where]
        return Batch(values, labels, vectors=None if self.vectors is None else self.vectors[where])


def read_latents(file: str, split: str = "train", scale: float = 1.0, shift: float = 0.0) -> LatentSet:
    """`latents` (N, C, H, W), of a floating type, and perhaps `labels` (N,) and `conditions` (N, K) of an .npz.

    Raises
    ------
    ValueError
        If the file cannot be read or does not hold that, or a latent is not finite.
    """
    place = Path(file)
    try:
        with np.load(place, allow_pickle=False) as content:
            array, labels, told = content["latents"], content.get("labels"), content.get("conditions")
    except Exception as error:  # numpy, zipfile and zlib each raise their own
        raise ValueError(f"{place} cannot be read as an .npz with latents: {error}") from error
    if array.ndim != 4 or not np.issubdtype(array.dtype, np.floating) or not len(array):
        raise ValueError(f"latents of {place} must be floats (N, C, H, W), got {array.dtype} {array.shape}")
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if bad.any():
        raise ValueError(
            f"latents of {place} are not finite: {int(bad.sum())} of {len(array)}, first {int(bad.argmax())}"
        )
    targets: Tensor | None = None
    classes: tuple[str, ...] = ()
    if labels is not None:
        targets = torch.from_numpy(np.asarray(labels).astype(np.int64)).reshape(-1)
        if len(targets) != len(array) or int(targets.min()) < 0:
            raise ValueError(f"labels of {place} must be {len(array)} class numbers from 0, got {len(targets)}")
        classes = tuple(str(kind) for kind in range(int(targets.max()) + 1))
    vectors = None if told is None else read_vectors(told, len(array), str(place))
    kept = split_indices(len(array), split, targets)
    values = torch.from_numpy(np.ascontiguousarray(array))[kept]
    labels_kept = None if targets is None else targets[kept]
    vectors = None if vectors is None else vectors[kept]
    return LatentSet(str(place), values, labels_kept, classes, scale, shift, vectors)
