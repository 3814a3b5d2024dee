"""Which noise goes with which image, where a coupling decides: a pure function of the seed and the position.

The samples of a run are one stream, position = step·(images per step) + place. It is cut into blocks, and within a
block the coupling moves the noises; images, labels and flips stay where they are. A block is the same on any number of
processes and micro-batches, and a resumed run finds the blocks of the unbroken one, because nothing is carried over
from one block to the next. For the same reason the next block can be made in a thread while the network runs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from pathline.interpolants import Coupling
from pathline.samplers import keyed_normal

from .batches import COUPLE, BatchPlan, KeyedDraws
from .data import Batch, ImageSet

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
        The coupling of a block, a new one where it remembers earlier batches; its pairs come in the order of the data.
    block : int
        Samples coupled at once.
    flipped : bool
        Whether images are mirrored at random before they are coupled.
    end : int
        Positions of the whole run; of those before it, the block after the one asked for is made ahead.
    by_vectors : bool
        Whether the conditions are the vectors of the images, not their labels.

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
        by_vectors: bool = False,
        end: int = 0,
    ) -> None:
        if block < 2:
            raise ValueError(f"coupling_batch must be at least 2, got {block}")
        self._data, self._plan, self._draws, self._make = data, plan, draws, make
        self._block, self._flipped, self._by_vectors = block, flipped, by_vectors
        self._end = end
        self._found: dict[int, Tensor | Future[Tensor]] = {}
        self._maker: ThreadPoolExecutor | None = None

    def partners(self, positions: Tensor) -> Tensor:
        """Position of the noise for the image at each position, int64 (B,)."""
        blocks = positions // self._block
        result = torch.empty_like(positions)
        for block in blocks.unique().tolist():
            here = blocks == block
            result[here] = self._partners_of(block)[positions[here] - block * self._block]
        return result

    def _partners_of(self, block: int) -> Tensor:
        found = self._found.get(block)
        if isinstance(found, Future):
            found = found.result()
        elif found is None:
            found = self._couple(block)
        self._found = {other: plan for other, plan in self._found.items() if abs(other - block) < _KEPT}
        self._found[block] = found
        self._make_ahead(block + 1)
        return found

    def _make_ahead(self, block: int) -> None:
        """Begin with a block in a thread, if the run comes to it; the solvers let other threads run meanwhile."""
        if block in self._found or block * self._block >= self._end:
            return
        if self._maker is None:
            self._maker = ThreadPoolExecutor(1, thread_name_prefix="coupling")
        self._found[block] = self._maker.submit(self._couple, block)

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
        pairs = self._make()(noise, images, self._condition(batch), generator)
        assert torch.equal(pairs.data, torch.arange(self._block)), "pairs must come in the order of the data"
        return positions[pairs.base]

    def _condition(self, batch: Batch) -> Tensor | None:
        if not self._by_vectors or batch.vectors is None:
            return batch.labels
        return batch.vectors[:, 0] if batch.vectors.shape[1] == 1 else batch.vectors
