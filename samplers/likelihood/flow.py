"""The probability flow and its volume between two levels by an adaptive method of torchdiffeq."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import DiscretePath, GaussianPath

from ..adaptive.problem import level_at
from ..border import Border
from ..nodes import Level
from .augmented import Carried
from .divergence import Divergence

SOLVERS = ("adaptive_heun", "bosh3", "dopri5", "dopri8", "fehlberg2")


@dataclass(frozen=True)
class Ends:
    """Levels between which a flow is integrated: `noisy` next to the prior, `clean` next to the data."""

    noisy: Level
    clean: Level


def gives_velocity(border: Border, level: Level) -> bool:
    """Whether the network's prediction determines the velocity at a level."""
    try:
        border.conversion(level, "velocity")
    except ValueError:
        return False
    return True


def flow_ends(path: GaussianPath, border: Border, clean_time: float | None = None) -> Ends:
    """The whole path, but for ends where the flow is not determined: those of the path's default range of λ instead.

    A `clean_time` asked for is kept.
    """
    in_time = not isinstance(path, DiscretePath)
    noisy, clean = level_at(path, 0.0), level_at(path, 1.0 if clean_time is None else clean_time)
    if not (in_time and gives_velocity(border, noisy)) and noisy.signal == 0.0:
        noisy = level_at(path, float(path.time_at(path.lambda_min)))
    if (
        clean_time is None
        and not (in_time and gives_velocity(border, clean))
        and clean.noise < math.exp(-path.lambda_max)
    ):
        clean = level_at(path, float(path.time_at(path.lambda_max)))
    return Ends(noisy, clean)


def integrate_volume(
    path: GaussianPath,
    border: Border,
    x: Tensor,
    divergence: Divergence,
    kwargs: Mapping[str, Any],
    span: tuple[Level, Level],
    *,
    method: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
) -> Carried:
    """The state at the second level of `span` from `x` at the first, and log |det| of the map between.

    State and scalar are stepped together under one error control, in time along the velocity where it is determined at
    both ends, else x/signal in noise/signal along the noise prediction.
    """
    from torchdiffeq import odeint

    first, last = span
    shape, size = x.shape[1:], x[0].numel()
    smooth = not isinstance(path, DiscretePath) and all(gives_velocity(border, level) for level in span)

    low, high = (level.time if smooth else level.noise / level.signal for level in span)

    def slope(place: Tensor, z: Tensor) -> Tensor:
        share = min(max(float(place), 0.0), 1.0)
        here = (1.0 - share) * low + share * high
        level = level_at(path, here) if smooth else level_at(path, float(path.time_at(-math.log(here))))
        scale, form = (1.0, "velocity") if smooth else (level.signal, "noise")
        state = scale * z[:, :size].reshape(-1, *shape)
        value, trace = divergence(lambda s: border.at(level, form, s, kwargs), state)
        return (high - low) * torch.cat([value.flatten(1), scale * trace.to(value.dtype)], dim=1)

    wide = torch.float32 if x.device.type == "mps" else torch.float64
    ends = torch.tensor([0.0, 1.0], dtype=wide, device=x.device)
    units = (1.0, 1.0) if smooth else (first.signal, last.signal)
    start = torch.cat([x.flatten(1) / units[0], x.new_zeros(len(x), divergence.columns)], dim=1)
    options = {"dtype": wide, "step_t": ends[1:]}  # the last step lands on the end and asks for nothing beyond
    with torch.no_grad():
        end = odeint(slope, start, ends, rtol=rtol, atol=atol, method=method, options=options)[1]
    grown = size * math.log(units[1] / units[0])
    return Carried(units[1] * end[:, :size].reshape(-1, *shape), end[:, size:] + grown)
