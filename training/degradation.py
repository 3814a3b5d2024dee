"""Images that a network is to restore: what it sees of them, and where its flow starts.

Super-resolution and in-painting as data-dependent couplings (Albergo et al. 2024, arXiv:2310.03725), or, from plain
noise, as channels beside the state alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import InpaintingBase, SuperResolutionBase, check_name, unknown_name

DEGRADATIONS: dict[str, type[InpaintingBase] | type[SuperResolutionBase]] = {
    "super_resolution": SuperResolutionBase,
    "inpainting": InpaintingBase,
}
"""Classes of the degradations by name."""


@dataclass(frozen=True)
class Degradation:
    """A degradation and how it enters the model.

    Parameters
    ----------
    base : SuperResolutionBase or InpaintingBase
    start : bool
        Start the flow at the degraded image; else at noise. The network sees the image either way.
    bridge : bool
        The start is the source of a bridge: the model is given it, and no part of the state stands still.
    """

    base: SuperResolutionBase | InpaintingBase
    start: bool = False
    bridge: bool = False

    @property
    def tiles(self) -> int | None:
        """Side of the grid of uniforms that the degradation takes; None if it takes none."""
        return self.base.tiles if isinstance(self.base, InpaintingBase) else None

    def extra_channels(self, channels: int) -> int:
        """Channels of the network's input besides the state: the image seen, and the mask of an in-painting."""
        return channels + (self.tiles is not None)

    def __call__(self, data: Tensor, noise: Tensor, uniforms: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Start of the flow (B, C, H, W), and keyword arguments of the model.

        Parameters
        ----------
        data, noise : Tensor (B, C, H, W)
        uniforms : Tensor (B, tiles, tiles), for in-painting

        Raises
        ------
        ValueError
            Sides that the factor or the tiles do not divide.
        """
        if isinstance(self.base, SuperResolutionBase):
            made = self.base(data, noise)
            seen = made.condition
        else:
            assert uniforms is not None
            made = self.base(data, noise, uniforms.to(data))
            assert made.free is not None
            seen = torch.cat([made.condition, made.free[:, :1]], 1)
        conditions = {"condition": seen}
        if self.bridge:
            conditions["source"] = made.base
        elif self.start and made.free is not None:
            conditions["free"] = made.free
        return (made.base if self.start else noise), conditions

    def config(self) -> dict[str, Any]:
        """Name, parameters and use, for JSON; `degradation_from_config` reads it."""
        name = next(name for name, kind in DEGRADATIONS.items() if isinstance(self.base, kind))
        return {"name": name, "start": self.start, "bridge": self.bridge, **asdict(self.base)}


def degradation_from_config(config: Mapping[str, Any]) -> Degradation:
    """Make a degradation from its name, parameters and use.

    Raises
    ------
    ValueError
        If one is unknown or not possible.
    """
    rest = dict(config)
    name, start, bridge = rest.pop("name"), rest.pop("start", False), rest.pop("bridge", False)
    kind = DEGRADATIONS[check_name("image_condition", name, DEGRADATIONS)]
    usual = {field.name: field.default for field in fields(kind)}
    for key, value in rest.items():
        if key not in usual:
            raise unknown_name(f"parameter of {name!r} (image_condition_config)", key, usual)
        whole = isinstance(usual[key], int)
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            wanted = "a whole number" if whole else "a number"
            raise ValueError(f"{key}={value!r} of {name!r} (image_condition_config) must be {wanted}")
    return Degradation(kind(**rest), bool(start), bool(bridge))
