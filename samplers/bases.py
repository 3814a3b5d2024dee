"""Orthonormal bases in which array coefficients of a table may act as filters, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from pathline.interpolants import unknown_name


@dataclass(frozen=True)
class CosineBasis:
    """Orthonormal cosine transform (DCT-II) along the last two axes, and three channels turned into grey and opponents.

    White noise stays white, so a path is the same path in this basis: only the network has to be turned.
    """

    name: str = "cosine"

    def to(self, x: Tensor) -> Tensor:
        """Coordinates (B, C, H, W) of images of that shape.

        Raises
        ------
        ValueError
            x is no batch of images.
        """
        self.check(x.shape[1:])
        rows, columns = _cosines(x.shape[-2], x.device, x.dtype), _cosines(x.shape[-1], x.device, x.dtype)
        x = rows @ x @ columns.mT
        return torch.einsum("pc,bchw->bphw", _opponent(x.device, x.dtype), x) if x.shape[1] == 3 else x

    def back(self, x: Tensor) -> Tensor:
        """Images of coordinates: the inverse of `to`; errors as there."""
        self.check(x.shape[1:])
        rows, columns = _cosines(x.shape[-2], x.device, x.dtype), _cosines(x.shape[-1], x.device, x.dtype)
        x = torch.einsum("pc,bphw->bchw", _opponent(x.device, x.dtype), x) if x.shape[1] == 3 else x
        return rows.mT @ x @ columns

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless one sample of `shape` is an image (C, H, W)."""
        if len(shape) != 3:
            raise ValueError(f"the cosine basis is one of images (B, C, H, W), got samples of shape {tuple(shape)}")


BASES = {"cosine": CosineBasis()}


def basis_named(name: str) -> CosineBasis:
    """The basis of a name; ValueError with the nearest names for an unknown one."""
    if name not in BASES:
        raise unknown_name("basis", name, BASES)
    return BASES[name]


@cache
def _cosines(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # kept for runs that record gradients too
        k, j = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
        matrix = math.sqrt(2.0 / size) * torch.cos(math.pi * (2 * j + 1) * k / (2 * size))
        matrix[0] /= math.sqrt(2.0)
        return matrix.to(device=device, dtype=dtype)


@cache
def _opponent(device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        matrix = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=torch.float64)
        return (matrix / matrix.norm(dim=1, keepdim=True)).to(device=device, dtype=dtype)
