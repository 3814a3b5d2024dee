"""Standard normals as a pure function of (seed, sample, row, slot).

A sample's noise does not depend on its batch, its device split or the order of calls, and particles cloned by a
resampler diverge, because the key belongs to the slot and not to the particle. The generator is SplitMix64 run
as a counter (Steele, Lea and Flood 2014) followed by the Box–Muller transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

START_NOISE = -1
"""Row under which the initial noise of a sample is drawn; run rows count from 0."""

_GAMMA = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1
_BLOCK = 1 << 14  # pairs: 128 KB of bits
_REMEMBERED = 1 << 16


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
    return draw_normals(
        own_keys(torch.as_tensor(samples, dtype=torch.int64, device=device)), shape, seed, row, slot, dtype
    )


def draw_normals(own: Tensor, shape: Sequence[int], seed: int, row: int, slot: int, dtype: torch.dtype) -> Tensor:
    """`keyed_normal` of the samples whose `own_keys` (B,) are given, for those who draw often."""
    shared = _mix(_mix(_mix(seed) + (row + 2) * _GAMMA) ^ _mix(slot + 1))
    keys = joint_keys(own, _signed(shared))
    if torch.compiler.is_compiling():  # one node of the graph; a cipher for every draw would take minutes to compile
        double = dtype == torch.float64
        return torch.ops.pathline.normals(keys, list(shape), double).to(dtype)
    return normals(keys, shape, dtype)


def noise_keys(seed: int, rows: Tensor, slots: Tensor) -> Tensor:
    """What all samples of a run share in their keys at rows and slots, int64 tensors of one shape."""
    return _mix_tensor(_mix_tensor((rows + 2) * _signed(_GAMMA) + _signed(_mix(seed))) ^ _mix_tensor(slots + 1))


def joint_keys(own: Tensor, shared: int | Tensor) -> Tensor:
    """Keys of samples from their own part (B,) and the shared one, an integer or an int64 tensor that broadcasts."""
    return _mix_tensor(own ^ shared)


def own_keys(index: Tensor) -> Tensor:
    """The part of their keys that samples with these global indices (B,) do not share."""
    return _mix_tensor(index * _signed(_GAMMA))


def normals(keys: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Standard normals (B, *shape) from keys (B,): one stream for each key."""
    count = math.prod(shape)
    half = (count + 1) // 2
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if torch.compiler.is_compiling():  # one kernel without a concatenation, which torch 2.13 miscompiles on the host
        place = torch.arange(count, device=keys.device)
        first = place < half
        radius, angle = _polar(_mix_tensor(keys[:, None] + _counter(torch.where(first, place, place - half))), wide)
        drawn = radius * torch.where(first, torch.cos(angle), torch.sin(angle))
    else:
        drawn = torch.empty((len(keys), 2 * half), dtype=wide, device=keys.device)
        _fill(drawn, keys, half)
        drawn = drawn[:, :count]
    return drawn.reshape(len(keys), *shape).to(dtype)


def _fill(drawn: Tensor, keys: Tensor, half: int) -> None:
    """Box–Muller pairs of all streams, on the host in pieces that stay in its cache."""
    counter = _counters(half, keys.device) if half <= _REMEMBERED else _counter(torch.arange(half, device=keys.device))
    width, rows = (half, len(keys)) if keys.device.type != "cpu" else (min(half, _BLOCK), max(1, _BLOCK // half))
    for row in range(0, len(keys), rows):
        for start in range(0, half, width):
            part = slice(start, min(start + width, half))
            bits = _mix_in_place(keys[row : row + rows, None] + counter[part])
            radius, angle = _polar(bits, drawn.dtype)
            out = drawn[row : row + rows]
            torch.mul(radius, torch.cos(angle), out=out[:, part])
            torch.mul(radius, torch.sin(angle), out=out[:, half + part.start : half + part.stop])


@torch.library.custom_op("pathline::normals", mutates_args=())
def _normals_of(keys: Tensor, shape: list[int], double: bool) -> Tensor:
    return normals(keys, shape, torch.float64 if double else torch.float32)


@_normals_of.register_fake
def _(keys: Tensor, shape: list[int], double: bool) -> Tensor:
    return keys.new_empty((len(keys), *shape), dtype=torch.float64 if double else torch.float32)


def _counter(place: Tensor) -> Tensor:
    return (place + 1) * _signed(_GAMMA)


@lru_cache(maxsize=4)
def _counters(half: int, device: torch.device) -> Tensor:
    return _counter(torch.arange(half, device=device))


def _polar(bits: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Radius and angle of Box–Muller pairs from the high and the low 32 bits."""
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
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _mix_tensor(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _signed(_MIX_1)
    value = (value ^ _shift(value, 27)) * _signed(_MIX_2)
    return value ^ _shift(value, 31)


def _mix_in_place(value: Tensor) -> Tensor:
    """`_mix_tensor` in the memory of its argument, and of one tensor more."""
    spare = torch.empty_like(value)
    for by, factor in ((30, _MIX_1), (27, _MIX_2), (31, None)):
        torch.bitwise_right_shift(value, by, out=spare)
        value.bitwise_xor_(spare.bitwise_and_((1 << (64 - by)) - 1))
        if factor is not None:
            value.mul_(_signed(factor))
    return value


def _shift(value: Tensor, by: int) -> Tensor:
    # torch shifts int64 arithmetically; the mask makes it logical
    return (value >> by) & ((1 << (64 - by)) - 1)
