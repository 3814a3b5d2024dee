"""Bases made from the data they are coupled to: x_0 = m(x_1) + σ·ζ.

Albergo, Goldstein, Boffi, Ranganath and Vanden-Eijnden, "Stochastic interpolants with data-dependent couplings",
ICML 2024 (arXiv:2310.03725). Paths, losses and samplers stay as they are; the network also sees the condition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional

from ..tensors import match


class DependentBase(NamedTuple):
    """A base for a batch of data.

    Attributes
    ----------
    base : Tensor (B, ...)
    condition : Tensor (B, ...)
        What the network sees besides the state: the degraded image.
    free : Tensor or None
        1 where the velocity is not known to vanish, 0 elsewhere: multiply the network's output by it, in the loss and
        in the sampler.
    """

    base: Tensor
    condition: Tensor
    free: Tensor | None = None


@dataclass(frozen=True)
class SuperResolutionBase:
    """The image at a lower resolution, enlarged again, plus noise.

    Parameters
    ----------
    factor : int ≥ 2
    noise : float > 0
        σ; without it the base would lie on a surface, where no flow can start.

    Raises
    ------
    ValueError
        A factor below 2 or noise that is not positive; on use, images whose sides the factor does not divide.
    """

    factor: int = 4
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.factor < 2 or not self.noise > 0:
            raise ValueError(
                f"factor={self.factor!r} and noise={self.noise!r} are not possible; a whole number from 2 and a "
                "positive number are needed"
            )

    def __call__(self, data: Tensor, noise: Tensor) -> DependentBase:
        """Base of images (B, C, H, W) from standard normals of the same shape."""
        if data.ndim != 4 or any(side % self.factor for side in data.shape[2:]):
            raise ValueError(
                f"factor={self.factor}: images (B, C, H, W) must have sides divisible by it, got {tuple(data.shape)}"
            )
        small = functional.avg_pool2d(data, self.factor)
        large = functional.interpolate(small, scale_factor=float(self.factor), mode="nearest")
        return DependentBase(large + self.noise * noise, large)


@dataclass(frozen=True)
class InpaintingBase:
    """The image where it is kept, noise elsewhere; tiles are hidden independently.

    Parameters
    ----------
    tiles : int ≥ 1
        Along each side.
    hidden : float in (0, 1)
        Probability of each tile.

    Raises
    ------
    ValueError
        A number out of range; on use, images whose sides are not divisible into tiles.
    """

    tiles: int = 8
    hidden: float = 0.3

    def __post_init__(self) -> None:
        if self.tiles < 1 or not 0.0 < self.hidden < 1.0:
            raise ValueError(
                f"tiles={self.tiles!r} and hidden={self.hidden!r} are not possible; at least 1, and between 0 and 1"
            )

    def __call__(self, data: Tensor, noise: Tensor, uniforms: Tensor) -> DependentBase:
        """Base of images (B, C, H, W) from normals of the same shape and uniforms (B, tiles, tiles)."""
        if data.ndim != 4 or any(side % self.tiles for side in data.shape[2:]):
            raise ValueError(
                f"tiles={self.tiles}: images (B, C, H, W) must have sides divisible by it, got {tuple(data.shape)}"
            )
        if uniforms.shape != (len(data), self.tiles, self.tiles):
            raise ValueError(
                f"uniforms must have shape {(len(data), self.tiles, self.tiles)}, got {tuple(uniforms.shape)}"
            )
        free = (uniforms[:, None] < self.hidden).to(data.dtype)
        height, width = (side // self.tiles for side in data.shape[2:])
        free = free.repeat_interleave(height, 2).repeat_interleave(width, 3)
        seen = (1.0 - free) * data
        return DependentBase(seen + free * noise, seen, free)


@dataclass(frozen=True)
class ClassBase:
    """A Gaussian for each class: x_0 = m_c + s_c·ζ.

    Parameters
    ----------
    means : Tensor (K, ...)
    scales : Tensor (K,)
        Positive.

    Raises
    ------
    ValueError
        Not one scale for each class, or one that is not positive; on use, labels out of range.
    """

    means: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        if self.scales.shape != self.means.shape[:1] or not bool((self.scales > 0).all()):
            raise ValueError(
                f"scales must be positive, one for each of the {len(self.means)} classes, got "
                f"{tuple(self.scales.shape)}"
            )

    def __call__(self, labels: Tensor, noise: Tensor) -> DependentBase:
        """Base for labels (B,) from normals (B, ...)."""
        if labels.shape != noise.shape[:1] or noise.shape[1:] != self.means.shape[1:]:
            raise ValueError(f"labels {tuple(labels.shape)} and noise {tuple(noise.shape)} do not fit the means")
        if bool((labels < 0).any()) or bool((labels >= len(self.means)).any()):
            raise ValueError(f"labels must be from 0 to {len(self.means) - 1}")
        means, scales = self.means.to(noise)[labels], self.scales.to(noise)[labels]
        return DependentBase(means + match(scales, noise) * noise, labels)
