"""SDEdit: noise a guide and denoise it again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..border import Model
from ..keyed_noise import START_NOISE, keyed_normal
from ..loop import run
from ..run_state import Hook
from ..table import Table
from .inpainting import KnownRegion


def sdedit(
    table: Table,
    model: Model,
    guide: Tensor,
    *,
    repeats: int = 1,
    mask: Tensor | None = None,
    original: Tensor | None = None,
    seed: int = 0,
    samples: Sequence[int] | Tensor | None = None,
    hooks: Sequence[Hook] = (),
    **given: Any,
) -> Tensor:
    """SDEdit (Meng et al. 2022, arXiv:2108.01073): signal·guide + noise·ε at the table's start, then the table.

    Parameters
    ----------
    table : Table
        Stochastic or not, beginning at the level that decides between faithful (clean) and realistic (noisy): a table
        on `make_nodes(...).part(start)`, or an `editing_table`.
    guide : Tensor (B, ...)
        A sketch, a collage, a coarse image.
    repeats : int ≥ 1
        Each result is the guide of the next pass; published: 3. Pass k draws its noise with seed + k.
    mask, original : Tensor, optional
        Where the mask is 1 the original (default: the guide) is kept: after every call it is put back with one noise
        for all levels of a pass.
    seed, samples, hooks, given : as in `run`

    Raises
    ------
    ValueError
        Fewer than one repeat, or an original without a mask.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats!r} is not possible; it must be at least 1")
    if original is not None and mask is None:
        raise ValueError("original is kept where mask is 1, and no mask was given")
    index = torch.arange(len(guide), device=guide.device) if samples is None else torch.as_tensor(samples)
    level, kept = table.start, guide if original is None else original
    for k in range(repeats):
        z = keyed_normal(guide.shape[1:], seed + k, index, START_NOISE, dtype=_wide(guide), device=guide.device)
        region = [] if mask is None else [KnownRegion(kept, mask, noise="same")]
        start = (level.signal * guide + level.noise * z).to(guide.dtype)
        result = run(table, model, start, seed=seed + k, samples=index, hooks=[*region, *hooks], **given)
        assert isinstance(result, Tensor)
        guide = result
    return guide


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
