"""Which images, noises and times an optimiser step sees: pure functions of the seed, the step and the place.

A step has one global batch, numbered 0 ... G-1 whatever the number of processes and accumulated micro-batches.
Everything random about sample j of step k is keyed by (seed, k, j), so the same step is the same on any split,
and a resumed run goes on exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pathline.samplers import keyed_normal

from .densities import normal_cdf

NOISE, TIME, STRATUM, FLIP, DROP, COUPLE, HIDE, PAIR, LATENT = range(9)
"""Slots of the keyed noise: what a sample's numbers are used for."""


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    key = keyed_normal((1,), seed, [epoch], slot=STRATUM, dtype=torch.float64)
    own_seed = int(key.view(torch.int64).item()) & (2**63 - 1)  # epochs of neighbouring seeds must not coincide
    return torch.randperm(count, generator=torch.Generator().manual_seed(own_seed))


@dataclass(frozen=True)
class BatchPlan:
    """The order of the data: permutations of the whole set, one after the other, cut into global batches.

    Parameters
    ----------
    count : int
        Number of images in the set.
    batch_size : int
        Images per process and micro-batch.
    processes, accumulation : int
        The global batch is their product with `batch_size`.
    seed : int
    """

    count: int
    batch_size: int
    processes: int
    accumulation: int
    seed: int

    @property
    def global_batch(self) -> int:
        """Images per optimiser step."""
        return self.batch_size * self.processes * self.accumulation

    def places(self, micro: int, process: int) -> Tensor:
        """Numbers within the global batch that one process handles in one micro-batch, shape (batch_size,)."""
        start = (micro * self.processes + process) * self.batch_size
        return torch.arange(start, start + self.batch_size)

    def indices(self, step: int, places: Tensor) -> list[int]:
        """Data indices of these places of the global batch of optimiser step `step` (counted from 0)."""
        return self.indices_at(self.positions(step, places))

    def positions(self, step: int, places: Tensor) -> Tensor:
        """Positions of these places in the run's whole stream of samples, (B,)."""
        return step * self.global_batch + places

    def indices_at(self, positions: Tensor) -> list[int]:
        """Data indices of these positions in the stream of samples."""
        epochs = positions // self.count
        result = torch.empty_like(positions)
        for epoch in range(int(epochs.min()), int(epochs.max()) + 1):
            here = epochs == epoch
            result[here] = _epoch_order(self.count, self.seed, epoch)[positions[here] % self.count]
        return result.tolist()

    def index_batches(self, first_step: int, steps: int, process: int) -> Iterator[list[int]]:
        """Data indices of every micro-batch of one process, from one step up to another."""
        for step in range(first_step, steps):
            for micro in range(self.accumulation):
                yield self.indices(step, self.places(micro, process))


@dataclass(frozen=True)
class KeyedDraws:
    """Noise, uniforms and coin tosses for places of a step's global batch, keyed by (seed, step, place)."""

    seed: int
    global_batch: int

    def noise(self, step: int, places: Tensor, like: Tensor, slot: int = NOISE) -> Tensor:
        """Standard normals of the shape, type and device of `like`, (B, ...)."""
        places = places.to(like.device)
        return keyed_normal(
            like.shape[1:], self.seed, places, row=step, slot=slot, dtype=like.dtype, device=like.device
        )

    def noise_at(self, positions: Tensor, like: Tensor) -> Tensor:
        """The same noise for positions in the stream of samples, which may belong to several steps."""
        result = torch.empty_like(like)
        steps = positions // self.global_batch
        for step in steps.unique().tolist():
            here = steps == step
            chosen = here.to(like.device)
            result[chosen] = self.noise(step, positions[here] % self.global_batch, like[chosen])
        return result

    def flips(self, step: int, places: Tensor) -> Tensor:
        """Which samples are mirrored: half of them, bool (B,)."""
        return self.uniforms(step, places, FLIP) < 0.5

    def tiles(self, step: int, places: Tensor, side: int) -> Tensor:
        """Uniforms of a grid over each sample, float64 (B, side, side)."""
        return normal_cdf(keyed_normal((side, side), self.seed, places, row=step, slot=HIDE, dtype=torch.float64))

    def uniforms(self, step: int, places: Tensor, slot: int = TIME) -> Tensor:
        """Uniforms in (0, 1), float64 on the host, shape (B,)."""
        return normal_cdf(keyed_normal((1,), self.seed, places, row=step, slot=slot, dtype=torch.float64)[:, 0])

    def stratified(self, step: int, places: Tensor) -> Tensor:
        """Uniforms of which each of G equal strata holds exactly one over the global batch, in random order.

        Each is uniform by itself, so the loss has the same expectation with less variance.
        """
        order = keyed_normal((self.global_batch,), self.seed, [step], slot=STRATUM, dtype=torch.float64)[0]
        rank = order.argsort().argsort()[places]
        return (rank + self.uniforms(step, places)) / self.global_batch
