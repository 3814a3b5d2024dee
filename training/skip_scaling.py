"""Factors on the skip connections of a UNet, constant or learned.

Huang, Zhou, Yan and Lin, "ScaleLong: towards more stable training of diffusion model via scaling network long skip
connection", NeurIPS 2023 (arXiv:2310.13545).
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from pathline.interpolants import check_name

SKIP_SCALINGS = ("constant", "inverse_sqrt2", "learned")
_REDUCTION, _NARROWEST = 16, 4
_MODULE = "skip_factors"


class SkipScale:
    """Constant factors on the skips of an up block, outermost first."""

    def __init__(self, factors: tuple[float, ...]) -> None:
        self.factors = factors

    def __call__(self, block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """As a hook before an up block: scale what comes over its skips."""
        state, skips, *rest = arguments
        scaled = tuple(skip * factor for skip, factor in zip(skips, self.factors, strict=True))
        return (state, scaled, *rest)


class LearnedFactor(nn.Module):
    """A factor in (0, 1) for each channel, from the means of all channels: sigmoid, two layers, a bottleneck of 1/16.

    The published one squeezes the features of each token of a transformer; a UNet has channels in their place, and of
    another number at each skip, so that no weights are shared.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        narrow = max(_NARROWEST, channels // _REDUCTION)
        self.layers = nn.Sequential(nn.Linear(channels, narrow), nn.ReLU(), nn.Linear(narrow, channels), nn.Sigmoid())

    def forward(self, skip: Tensor) -> Tensor:
        """The skip (B, C, H, W) times its factors."""
        factors: Tensor = self.layers(skip.mean((2, 3)))
        return skip * factors[:, :, None, None]


def _learned(block: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same hook for factors that are part of the block."""
    state, skips, *rest = arguments
    factors: Any = getattr(block, _MODULE)
    return (state, tuple(factor(skip) for factor, skip in zip(factors, skips, strict=True)), *rest)


def install_skip_scaling(network: nn.Module, kind: str, factor: float | None = None) -> None:
    """Scale what a UNet2DModel gets over its skips.

    Parameters
    ----------
    network : nn.Module
    kind : {"constant", "inverse_sqrt2", "learned"}
        κ⁰, κ¹, κ² ... from the outermost, κ = `factor` (published: 0.5 to 0.95); 1/√2 on all; or `LearnedFactor`, whose
        weights become part of the network's.
    factor : float in (0, 1], for "constant"

    Raises
    ------
    ValueError
        If the kind is unknown, the network has no skips, or the factor is out of range.
    """
    check_name("skip_scaling", kind, SKIP_SCALINGS)
    if kind == "constant" and (factor is None or not 0.0 < factor <= 1.0):
        raise ValueError(f"skip_scale must be in (0, 1], got {factor!r}")
    if kind != "constant" and factor is not None:
        raise ValueError(f"skip_scale={factor!r} is the κ of skip_scaling 'constant', got {kind!r}")
    blocks: Any = getattr(network, "up_blocks", None)
    if blocks is None:
        raise ValueError(f"skip_scale needs a network with skip connections (unet), got {type(network).__name__}")
    channels = _skip_channels(network)
    place = len(channels)
    for block in blocks:  # the first up block takes the innermost skips, which were made last
        count = len(block.resnets)
        place -= count
        if kind == "learned":
            block.add_module(_MODULE, nn.ModuleList(LearnedFactor(width) for width in channels[place : place + count]))
            block.register_forward_pre_hook(_learned)
            continue
        factors = [math.sqrt(0.5) if factor is None else factor ** (place + number) for number in range(count)]
        block.register_forward_pre_hook(SkipScale(tuple(factors)))


def _skip_channels(network: nn.Module) -> list[int]:
    """Channels of all skips of a UNet2DModel in the order they are made: the first convolution, then each block."""
    config: Any = network.config
    widths = list(config["block_out_channels"])
    found = [widths[0]]
    for level, width in enumerate(widths):
        found += [width] * (config["layers_per_block"] + (level < len(widths) - 1))
    return found
