"""What a step trains on: images with their noises, times and conditions, all keyed by (seed, step, place)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from pathline.interpolants import Coupling, coupling_by_name

from .batches import DROP, LATENT, BatchPlan, KeyedDraws
from .coupled_noise import CoupledNoise
from .data import Batch, ImageSet
from .degradation import degradation_from_config
from .options import TrainOptions
from .resolve import degradation_config
from .tasks import Samples, Task
from .vector_conditions import vector_channels


class SampleMaker:
    """Makes the samples of a micro-batch from its images.

    Parameters
    ----------
    options : TrainOptions
        Resolved.
    data : ImageSet
    plan : BatchPlan
    task : Task
    labels : int, optional
        Label embeddings of the network, the last one for "no label"; None without classes.

    Raises
    ------
    ValueError
        If the coupling cannot be made for this data.
    """

    def __init__(
        self,
        options: TrainOptions,
        data: ImageSet,
        plan: BatchPlan,
        task: Task,
        labels: int | None,
    ) -> None:
        self.options, self.plan, self.task, self.labels = options, plan, task, labels
        self.draws = KeyedDraws(options.seed, plan.global_batch)
        self.coupled = self._coupled(data)
        config = degradation_config(options)
        self.degrade = None if config is None else degradation_from_config(config)
        if self.degrade is not None:  # refuses sides that cannot be divided
            blank = torch.zeros(1, *data.shape)
            try:
                self.degrade(blank, blank, self._tiles(0, torch.arange(1)))
            except ValueError as error:
                given = f"image_condition={options.image_condition!r} (image_condition_config)"
                raise ValueError(f"{given} does not suit data set {data.name!r}: {error}") from error

    def _coupled(self, data: ImageSet) -> CoupledNoise | None:
        options = self.options
        if options.coupling == "independent":
            return None
        if options.coupling == "c2ot" and not data.classes and not options.vector_conditional:
            raise ValueError(f"coupling 'c2ot' needs labels, and data set {data.name!r} has none")
        settings = coupling_settings(options)
        make = partial(coupling_by_name, options.coupling, **settings)
        if options.coupling != "c2ot":  # which carries a weight from batch to batch; the others warn once in their life
            coupling = make()
            make = partial(_same, coupling)
        block = options.coupling_batch or self.plan.global_batch
        return CoupledNoise(
            data,
            self.plan,
            self.draws,
            make,
            block=block,
            flipped=options.random_flip,
            by_vectors=options.vector_conditional,
            end=(options.max_train_steps or 0) * self.plan.global_batch,
        )

    def __call__(self, step: int, places: Tensor, batch: Batch, device: torch.device) -> Samples:
        """Samples at these places of the global batch of optimiser step `step`."""
        options = self.options
        data = batch.images.to(device, non_blocking=True)
        if options.random_flip:
            flip = self.draws.flips(step, places)
            data = torch.where(flip.to(device)[:, None, None, None], data.flip(-1), data)
        draw = self.draws.stratified if options.stratified_times else self.draws.uniforms
        times = self.task.times(draw(step, places))
        given = None if batch.noise is None else batch.noise.to(device, non_blocking=True)
        start = self._noise(step, places, data) if given is None else given
        conditions = self._conditions(step, places, batch, device)
        if self.degrade is not None:
            start, images = self.degrade(data, start, self._tiles(step, places))
            conditions |= images
        latent = self.draws.noise(step, places, data, LATENT) if self.task.takes_latent else None
        if latent is not None and "free" in conditions:  # parts that are kept do not move
            latent = latent * conditions["free"]
        return Samples(data, start, times, conditions, latent)

    def preview(self, data: ImageSet, count: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
        """Start and conditions of the first `count` images, with the noises of step 0."""
        places = torch.arange(min(count, len(data)))
        batch = data.__getitems__(places.tolist())
        images = batch.images.to(device)
        noise = self.draws.noise(0, places, images)
        if self.degrade is None:
            assert batch.vectors is not None
            return noise, {"condition": vector_channels(batch.vectors.to(device), images.shape[2], images.shape[3])}
        return self.degrade(images, noise, self._tiles(0, places))

    def _tiles(self, step: int, places: Tensor) -> Tensor | None:
        assert self.degrade is not None
        return None if self.degrade.tiles is None else self.draws.tiles(step, places, self.degrade.tiles)

    def _noise(self, step: int, places: Tensor, data: Tensor) -> Tensor:
        if self.coupled is None:
            return self.draws.noise(step, places, data)
        return self.draws.noise_at(self.coupled.partners(self.plan.positions(step, places)), data)

    def _conditions(self, step: int, places: Tensor, batch: Batch, device: torch.device) -> dict[str, Tensor]:
        drop = self.draws.uniforms(step, places, DROP) < self.options.class_dropout
        found = {}
        if self.labels is not None and batch.labels is not None:
            found["class_labels"] = torch.where(drop, self.labels - 1, batch.labels).to(device)
        if self.options.vector_conditional:
            assert batch.vectors is not None
            found["condition"] = vector_channels(batch.vectors, batch.images.shape[2], batch.images.shape[3], ~drop).to(
                device
            )
        return found


def _same(coupling: Coupling) -> Coupling:
    return coupling


def coupling_settings(options: TrainOptions) -> dict[str, object]:
    """Parameters of the options' coupling; entropic plans give one pair to each image."""
    entropic = options.coupling in ("sinkhorn", "newton")
    return {**({"each_data": True} if entropic else {}), **options.coupling_config}
