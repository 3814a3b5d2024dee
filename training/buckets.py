"""Training on images of several sizes: buckets of one shape each, or padding with a mask.

Buckets follow NovelAI's aspect-ratio bucketing (2022), with an area in place of one side; padding with masked losses is
how FiT trains at flexible resolutions (Wang et al., "FiTv2", arXiv:2410.13925).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pathline.samplers import keyed_normal

from .batches import STRATUM

Size = tuple[int, int]
"""Height and width."""


def bucket_sizes(area: int, multiple: int = 8, max_ratio: float = 2.0) -> list[Size]:
    """Sizes of about `area` pixels, at most that, for heights and widths that are multiples of a number.

    For each height the widest that fits, as long as neither side is above `max_ratio` times the other; by height.

    Raises
    ------
    ValueError
        If no size fits, or a number is out of range.
    """
    if multiple < 1 or area < multiple**2:
        raise ValueError(f"area={area!r} does not hold a square of side multiple={multiple!r}, which is at least 1")
    if not 1.0 <= max_ratio < math.inf:
        raise ValueError(f"max_ratio must be a finite number of at least 1, got {max_ratio!r}")
    found = []
    for height in range(multiple, area // multiple + 1, multiple):
        width = area // height // multiple * multiple
        if max(height, width) <= max_ratio * min(height, width):
            found.append((height, width))
    if not found:
        raise ValueError(f"no size of at most {area} pixels has sides that are multiples of {multiple}")
    return found


def nearest_size(size: Size, sizes: Sequence[Size]) -> Size:
    """Of these sizes the one whose ratio of sides is nearest, the larger one of two as near."""
    ratio = math.log(size[0] / size[1])
    return min(sizes, key=lambda other: (abs(math.log(other[0] / other[1]) - ratio), -other[0] * other[1]))


@dataclass(frozen=True)
class BucketPlan:
    """The order of data of several sizes: every step sees images of one size, a pure function of seed and step.

    In an epoch each bucket is permuted and cut into whole steps, and the steps of all buckets are permuted. What does
    not fill a step is left out, other images in every epoch.

    Parameters
    ----------
    buckets : sequence of N
        Bucket of each image, for instance its size.
    global_batch : int
        Images of a step.
    seed : int

    Raises
    ------
    ValueError
        A batch below 1, no images, or a bucket that does not fill a step.
    """

    buckets: tuple[Size, ...]
    global_batch: int
    seed: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "buckets", tuple(tuple(size) for size in self.buckets))
        if self.global_batch < 1:
            raise ValueError(f"global_batch must be at least 1, got {self.global_batch!r}")
        if not self.buckets:
            raise ValueError("buckets holds no images")
        for size, members in self._members.items():
            if len(members) < self.global_batch:
                raise ValueError(
                    f"bucket {size} has {len(members)} images, fewer than the {self.global_batch} of a step; take "
                    "fewer buckets or a smaller batch"
                )

    @cached_property
    def _members(self) -> dict[Size, Tensor]:
        found: dict[Size, list[int]] = {}
        for index, size in enumerate(self.buckets):
            found.setdefault(size, []).append(index)
        return {size: torch.tensor(found[size]) for size in sorted(found)}

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        return sum(len(members) // self.global_batch for members in self._members.values())

    @cached_property
    def _epochs(self) -> dict[int, Tensor]:
        return {}

    def _epoch(self, epoch: int) -> Tensor:
        """Images of each step of an epoch, (steps, global_batch)."""
        if epoch not in self._epochs:
            key = keyed_normal((1,), self.seed, [epoch], slot=STRATUM, dtype=torch.float64)
            generator = torch.Generator().manual_seed(int(key.view(torch.int64).item()) & (2**63 - 1))
            steps = []
            for members in self._members.values():
                mixed = members[torch.randperm(len(members), generator=generator)]
                whole = len(members) // self.global_batch * self.global_batch
                steps.append(mixed[:whole].reshape(-1, self.global_batch))
            rows = torch.cat(steps)
            self._epochs.clear()
            self._epochs[epoch] = rows[torch.randperm(len(rows), generator=generator)]
        return self._epochs[epoch]

    def indices(self, step: int, places: Tensor) -> list[int]:
        """Data indices of these places of the global batch of step `step` (counted from 0), all of one bucket."""
        found: list[int] = self._epoch(step // self.epoch_steps)[step % self.epoch_steps][places].tolist()
        return found


def padded(images: Sequence[Tensor], multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Images (C, H, W) of several sizes as one batch, zeros to the right and below, and a mask (B, 1, H, W) of 0 and 1.

    Sides are rounded up to a multiple. The mask goes into a loss as `mask`.

    Raises
    ------
    ValueError
        If there are none, or they differ in channels or type.
    """
    if not images or any(image.ndim != 3 for image in images):
        raise ValueError(f"images must be tensors (C, H, W), got shapes {[tuple(image.shape) for image in images]}")
    first = images[0]
    if any(image.shape[0] != first.shape[0] or image.dtype != first.dtype for image in images):
        raise ValueError("images must have one number of channels and one type")
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (1, 2))
    batch = first.new_zeros(len(images), first.shape[0], height, width)
    mask = first.new_zeros(len(images), 1, height, width)
    for row, image in enumerate(images):
        here = (row, slice(None), slice(image.shape[1]), slice(image.shape[2]))
        batch[here], mask[here] = image, 1
    return batch, mask
