"""SDE-Drag: move points of an image by copying latent patches at a noisy level."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..border import Model
from ..guidance import Guidance
from ..keyed_noise import keyed_normal
from ..table import Table
from .inpainting import KnownChain
from .sde_inversion import invert_sde

Point = tuple[int, int]
PATCH_ROW = -3
"""Row under which the noise of source patches is drawn; the initial noise has −1, Brownian paths −2."""


def drag_segments(sources: Sequence[Point], targets: Sequence[Point], step_size: float = 2.0) -> list[list[Point]]:
    """Way points of every pair, from the source to the target, in as many segments as fit `step_size` best.

    Returns
    -------
    list of m + 1 lists with one point for each pair; coordinates are truncated on the way

    Raises
    ------
    ValueError
        No pairs, or unequal numbers of points.
    """
    if len(sources) != len(targets) or not sources:
        raise ValueError(f"{len(sources)} sources and {len(targets)} targets are no pairs of points")
    if not step_size > 0.0:
        raise ValueError(f"step_size={step_size!r} is not possible; it must be above 0")
    longest = max(math.dist(a, b) for a, b in zip(sources, targets, strict=True))
    count = 1
    if longest > step_size:
        count = math.trunc(longest / step_size)
        count += abs(longest / (count + 1) - step_size) < abs(longest / count - step_size)

    def part(a: int, b: int, k: int) -> int:
        return a + math.trunc(k / count * (b - a))

    pairs = list(zip(sources, targets, strict=True))
    return [[(part(a[0], b[0], k), part(a[1], b[1], k)) for a, b in pairs] for k in range(count + 1)]


def move_patches(
    x: Tensor,
    sources: Sequence[Point],
    targets: Sequence[Point],
    noise: Tensor,
    *,
    radius: int = 5,
    amplify: float = 1.1,
    keep: float = 0.3,
) -> Tensor:
    """Copy square patches of a noisy state (B, C, H, W): target ← amplify·patch, source ← keep·patch + √(1 − keep²)·z.

    Parameters
    ----------
    x : Tensor (B, C, H, W)
        Not changed.
    sources, targets : sequences of (row, column)
    noise : Tensor, as x
        Standard normal.
    radius : int
        Half the side of a patch, clipped where source or target meets the border.
    amplify, keep : float
        The published α and β; a source patch of variance 1 keeps it.
    """
    x = x.clone()
    height, width = x.shape[-2:]
    for (r, c), (r_to, c_to) in zip(sources, targets, strict=True):
        up, left = min(radius, r, r_to), min(radius, c, c_to)
        down, right = min(radius, height - 1 - r, height - 1 - r_to), min(radius, width - 1 - c, width - 1 - c_to)
        if min(up, left, down, right) < 0:
            raise ValueError(f"points ({r}, {c}) and ({r_to}, {c_to}) must lie in the latent of {height} × {width}")
        here = (..., slice(r - up, r + down + 1), slice(c - left, c + right + 1))
        there = (..., slice(r_to - up, r_to + down + 1), slice(c_to - left, c_to + right + 1))
        patch = x[here].clone()
        x[here] = keep * patch + math.sqrt(1.0 - keep**2) * noise[here]
        x[there] = amplify * patch
    return x


def drag_scales(table: Table, clean: float = 1.0, noisy: float = 3.0) -> Callable[[Any], float]:
    """Published scales for `Scheduled`: linear in the row, from `noisy` at the table's start to `clean` at its end."""
    scales = np.linspace(noisy, clean, len(table.rows)).tolist()
    return lambda place: float(scales[place.row])


def sde_drag(
    table: Table,
    model: Model,
    x: Tensor,
    sources: Sequence[Point],
    targets: Sequence[Point],
    *,
    mask: Tensor | None = None,
    step_size: float = 2.0,
    radius: int = 5,
    amplify: float = 1.1,
    keep: float = 0.3,
    prediction: str = "data",
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
) -> Tensor:
    """SDE-Drag (Nie et al. 2024, arXiv:2311.01410) on latents.

    For each segment of the way: noise the latent along a chain, recover the noise, move the patches at the noisiest
    level, and sample back with the recovered noise and the chain outside the mask.

    Parameters
    ----------
    table : Table
        As in `invert_sde`; published: the last 120 of 200 DDPM steps (`editing_table(path, 200, 0.6)`).
    model : callable
        Fine-tuned to the image where the identity must hold (published: LoRA of rank 4, 100 steps).
    x : Tensor (B, C, H, W)
    sources, targets : sequences of (row, column) in the latent
        Of an image divided by the latents' factor, truncated.
    mask : Tensor, broadcast to (B, 1, H, W), optional
        1 where the image may change; default everywhere.
    step_size : float
        Length of a segment, in latent cells.
    radius, amplify, keep : as in `move_patches`
    prediction, model_kwargs, guidance, seed : as in `invert_sde`; the guidance serves both ways
        Published: `Scheduled(ClassifierFree(...), drag_scales(table))`. Segment k draws with seed + k.

    Returns
    -------
    Tensor (B, C, H, W)
    """
    ways = drag_segments(sources, targets, step_size)
    given: dict[str, Any] = {"model_kwargs": model_kwargs, "guidance": guidance}
    for k in range(len(ways) - 1):
        found = invert_sde(table, model, x, prediction=prediction, seed=seed + k, **given)
        index = list(range(len(x)))
        z = keyed_normal(x.shape[1:], seed + k, index, PATCH_ROW, dtype=found.start.dtype, device=x.device)
        start = move_patches(found.start, ways[k], ways[k + 1], z, radius=radius, amplify=amplify, keep=keep)
        hooks = [] if mask is None else [KnownChain(found, 1.0 - mask)]
        result = found.decode(model, start, hooks=hooks, **given)
        assert isinstance(result, Tensor)
        x = result.to(x.dtype)
    return x
