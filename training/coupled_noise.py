"""Which noise goes with which image, where a coupling decides: a pure function of the seed and the position.

The samples of a run are one stream, position = step·(images per step) + place. It is cut into blocks, and within a
block the coupling moves the noises; images, labels and flips stay where they are. A block is the same on any number of
processes and micro-batches, and a resumed run finds the blocks of the unbroken one, because nothing is carried over
from one block to the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pathline.interpolants import Coupling
from pathline.samplers import keyed_normal

from .batches import COUPLE, BatchPlan, KeyedDraws
from .data import ImageSet

_KEPT = 2  # a micro-batch may lie across two blocks


class CoupledNoise:
    """Positions whose noise goes with the images at given positions.

    Each process reads the images of a whole block, so that all agree on it without talking to each other.

    Parameters
    ----------
    data : ImageSet
    plan : BatchPlan
    draws : KeyedDraws
    make : callable () -> Coupling
        A new coupling for each block; its pairs come in the order of the data.
    block : int
        Samples coupled at once.
    flipped : bool
        Whether images are mirrored at random before they are coupled.

    Raises
    ------
    ValueError
        A block below 2.
    """

    def __init__(
        self,
        data: ImageSet,
        plan: BatchPlan,
        draws: KeyedDraws,
        make: Callable[[], Coupling],
        *,
        block: int,
        flipped: bool = False,
    ) -> None:
        if block < 2:
            raise ValueError(f"coupling_batch must be at least 2, got {block}")
        self._data, self._plan, self._draws, self._make = data, plan, draws, make
        self._block, self._flipped = block, flipped
        self._found: dict[int, Tensor] = {}

    def partners(self, positions: Tensor) -> Tensor:
        """Position of the noise for the image at each position, int64 (B,)."""
        blocks = positions // self._block
        result = torch.empty_like(positions)
        for block in blocks.unique().tolist():
            here = blocks == block
            result[here] = self._partners_of(block)[positions[here] - block * self._block]
        return result

    def _partners_of(self, block: int) -> Tensor:
        if block not in self._found:
            while len(self._found) >= _KEPT:
                del self._found[min(self._found)]
            self._found[block] = self._couple(block)
        return self._found[block]

    def _couple(self, block: int) -> Tensor:
        positions = torch.arange(block * self._block, (block + 1) * self._block)
        batch = self._data.__getitems__(self._plan.indices_at(positions))
        images = batch.images
        if self._flipped:
            steps = positions // self._plan.global_batch
            places = positions % self._plan.global_batch
            flip = torch.cat([self._draws.flips(step, places[steps == step]) for step in steps.unique().tolist()])
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        noise = self._draws.noise_at(positions, images)
        key = keyed_normal((1,), self._draws.seed, [block], slot=COUPLE, dtype=torch.float64)
        generator = torch.Generator().manual_seed(int(key.view(torch.int64).item()) & (2**63 - 1))
        pairs = self._make()(noise, images, batch.labels, generator)
        assert torch.equal(pairs.data, torch.arange(self._block)), "pairs must come in the order of the data"
        return positions[pairs.base]
