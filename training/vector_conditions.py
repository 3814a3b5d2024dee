"""Vectors that a network is told of each image: attributes, positions, embeddings; and how it sees them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def read_vectors(array: np.ndarray, count: int, where: str) -> Tensor:
    """`conditions` of an .npz as float32 (N, K); numbers (N,) become K = 1.

    Raises
    ------
    ValueError
        If they are not one vector of finite floats for each of `count` images; `where` names the file.
    """
    fits = array.ndim in (1, 2) and len(array) == count and array.size and np.issubdtype(array.dtype, np.floating)
    if not fits:
        raise ValueError(
            f"conditions of {where} must be floats ({count},) or ({count}, K), got {array.dtype} {array.shape}"
        )
    bad = ~np.isfinite(array).reshape(count, -1).all(1)
    if bad.any():
        raise ValueError(
            f"conditions of {where} are not finite: {int(bad.sum())} of {count}, first {int(bad.argmax())}"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).reshape(count, -1)


def vector_channels(vectors: Tensor, height: int, width: int, kept: Tensor | None = None) -> Tensor:
    """Vectors as constant channels beside the state, and one channel that says whether they are told.

    Parameters
    ----------
    vectors : Tensor (B, K)
    height, width : int
    kept : bool Tensor (B,), optional
        False where the condition is dropped: all channels are 0 then, which is "no condition" in guidance.

    Returns
    -------
    Tensor (B, K + 1, height, width)
        For the keyword `condition` of a network that was trained with `vector_conditional`.
    """
    told = vectors.new_ones(len(vectors), 1) if kept is None else kept.to(vectors)[:, None]
    both = torch.cat([vectors * told, told], 1)
    return both[:, :, None, None].expand(-1, -1, height, width)


def vectors_of(data: Any) -> Tensor:
    """Conditions (N, K) of a data set; ValueError if it has none."""
    vectors: Tensor | None = getattr(data, "vectors", None)
    if vectors is None:
        raise ValueError(f"vector_conditional needs `conditions` in an .npz, and data set {data.name!r} has none")
    return vectors
