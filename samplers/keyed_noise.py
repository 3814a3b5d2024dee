"""Standard normals as a pure function of (seed, sample, row, slot).

A sample's noise does not depend on its batch, its device split or the order of calls, and particles cloned by a
resampler diverge, because the key belongs to the slot and not to the particle. The generator is SplitMix64 run
as a counter (Steele, Lea and Flood 2014) followed by the Box–Muller transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .host_normals import GAMMA, MIX, box_muller, host_keys

START_NOISE = -1
"""Row under which the initial noise of a sample is drawn; run rows count from 0."""

_MASK = (1 << 64) - 1


def seed_of(generator: torch.Generator) -> int:
    """One 64-bit seed drawn from a generator; the only thing pathline ever takes from it."""
    low, high = torch.randint(0, 2**32, (2,), generator=generator, device=generator.device).tolist()
    return int(low) | int(high) << 32


def keyed_normal(
    shape: Sequence[int],
    seed: int,
    samples: Tensor | Sequence[int],
    row: int = 0,
    slot: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Standard normals of shape (B, *shape) for B global sample indices.

    Parameters
    ----------
    shape : sequence of int
        Shape of one sample, without the batch.
    seed : int
        Any 64-bit integer.
    samples : (B,) int64 tensor or sequence of int
        Global sample indices; entry b of the result depends on samples[b] only.
    row, slot : int
        Where in the run the noise is used.
    dtype : floating dtype of the result; float32 and float64 results agree to rounding.

    Returns
    -------
    Tensor, shape (B, *shape)
    """
    own = _mix_tensor(torch.as_tensor(samples, dtype=torch.int64, device=device) * _signed(GAMMA))
    shared = _mix(_mix(_mix(seed) + (row + 2) * GAMMA) ^ _mix(slot + 1))
    return normals(_mix_tensor(own ^ _signed(shared)), shape, dtype)


def run_keys(seeds: Sequence[int], samples: Tensor, draws: Tensor) -> Tensor:
    """Keys of all draws of a run, made at once.

    Parameters
    ----------
    seeds : one, or one for each sample
    samples : int64 Tensor (B,)
        Global sample indices.
    draws : int64 Tensor (R, 2), on the device of `samples`
        Row and slot of each draw.

    Returns
    -------
    int64 Tensor (R, B) for `run_normals`, row by row what `keyed_normal` uses
    """
    signed = [_signed(seed) for seed in seeds]
    if torch.compiler.is_compiling():
        keys: Tensor = torch.ops.pathline.run_keys(signed, samples, draws)
        return keys
    return _keys_of(signed, samples, draws)


def _keys_of(seeds: Sequence[int], samples: Tensor, draws: Tensor) -> Tensor:
    if samples.device.type == "cpu":
        return host_keys(seeds, samples, draws)
    rows, slots = (draws[:, 0] + 2) * _signed(GAMMA), _mix_tensor(draws[:, 1] + 1)
    shared = [_mix_tensor(_mix_tensor(rows + _signed(_mix(seed))) ^ slots) for seed in seeds]
    return _mix_tensor(_mix_tensor(samples * _signed(GAMMA)) ^ torch.stack(shared, dim=1))


def run_normals(keys: Tensor, like: Tensor) -> Tensor:
    """Standard normals of the shape and dtype of `like` from keys (B,), a row of `run_keys`."""
    if torch.compiler.is_compiling():  # one node of the graph; a cipher for every draw would take minutes to compile
        double = like.dtype == torch.float64
        drawn: Tensor = torch.ops.pathline.normals(keys, list(like.shape[1:]), double)
        return drawn.to(like.dtype)
    return normals(keys, like.shape[1:], like.dtype)


def normals(keys: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Standard normals (B, *shape) from keys (B,): one stream for each key."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if keys.device.type == "cpu" and not torch.compiler.is_compiling():
        drawn = box_muller(keys, shape, wide)
        return drawn if dtype == wide else drawn.to(dtype)
    count = math.prod(shape)
    half = (count + 1) // 2
    if torch.compiler.is_compiling():  # one kernel without a concatenation, which torch 2.13 miscompiles on the host
        place = torch.arange(count, device=keys.device)
        first = place < half
        radius, angle = _polar(keys, torch.where(first, place, place - half), wide)
        drawn = radius * torch.where(first, torch.cos(angle), torch.sin(angle))
    else:
        radius, angle = _polar(keys, torch.arange(half, device=keys.device), wide)
        drawn = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], 1)[:, :count]
    return drawn.reshape(len(keys), *shape).to(dtype)


@torch.library.custom_op("pathline::normals", mutates_args=())
def _normals_of(keys: Tensor, shape: list[int], double: bool) -> Tensor:
    return normals(keys, shape, torch.float64 if double else torch.float32)


@torch.library.custom_op("pathline::run_keys", mutates_args=())
def _run_keys_of(seeds: list[int], samples: Tensor, draws: Tensor) -> Tensor:
    return _keys_of(seeds, samples, draws)


@_run_keys_of.register_fake
def _(seeds: list[int], samples: Tensor, draws: Tensor) -> Tensor:
    return samples.new_empty((len(draws), len(samples)))


@_normals_of.register_fake
def _(keys: Tensor, shape: list[int], double: bool) -> Tensor:
    return keys.new_empty((len(keys), *shape), dtype=torch.float64 if double else torch.float32)


def _polar(keys: Tensor, place: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Radius and angle of Box–Muller pairs from the high and the low 32 bits."""
    bits = _mix_tensor(keys[:, None] + (place + 1) * _signed(GAMMA))
    radius = torch.sqrt(-2.0 * torch.log(_unit((bits >> 32) & 0xFFFFFFFF, dtype)))
    return radius, (2.0 * math.pi) * _unit(bits & 0xFFFFFFFF, dtype)


def _unit(integers: Tensor, dtype: torch.dtype) -> Tensor:
    """(n + 1/2)·2⁻³², never 0."""
    return torch.add(torch.full((), 2.0**-33, dtype=dtype, device=integers.device), integers.to(dtype), alpha=2.0**-32)


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _mix(value: int) -> int:
    value &= _MASK
    for by, factor in MIX:
        value = ((value ^ (value >> by)) * (factor or 1)) & _MASK
    return value


def _mix_tensor(value: Tensor) -> Tensor:
    for by, factor in MIX:
        value = value ^ _shift(value, by)
        value = value if factor is None else value * _signed(factor)
    return value


def _shift(value: Tensor, by: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it logical
    return (value >> by) & ((1 << (64 - by)) - 1)
