"""Images restored by a trained folder that sees a degraded one, and how far they are from the originals."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pathline.samplers import keyed_normal, sample
from pathline.samplers.calibrate.trajectories import mean_error
from pathline.training import LoadedPipeline, degradation_from_config

_SEED = 6


class Restored(NamedTuple):
    """Images (B, C, H, W): the originals, what was left of them, and what the network made of that."""

    images: Tensor
    seen: Tensor
    made: Tensor

    @property
    def errors(self) -> tuple[float, float]:
        """Mean over images of the RMSE per value, of what was seen and of what was made."""
        return mean_error(self.seen - self.images), mean_error(self.made - self.images)


def restore(loaded: LoadedPipeline, images: Tensor, nfe: int) -> Restored:
    """Degrade images in [-1, 1] as in training, with noise keyed by their place, and restore them.

    Parameters
    ----------
    loaded : LoadedPipeline
        Trained with an image condition.
    images : Tensor (B, C, H, W)
    nfe : int
        Network evaluations at most, of the sampler that suits the network.

    Raises
    ------
    ValueError
        The network sees no degraded image.
    """
    config = loaded.metadata.get("image_condition")
    if config is None:
        raise ValueError("this network sees no degraded image; train it with image_condition")
    degrade = degradation_from_config(config)
    places = range(len(images))
    noise, spare = (keyed_normal(images.shape[1:], _SEED, places, slot=slot) for slot in (0, 1))
    tiles = None
    if degrade.tiles is not None:
        tiles = torch.rand(len(images), degrade.tiles, degrade.tiles, generator=torch.Generator().manual_seed(_SEED))
    start, conditions = degrade(images, noise, tiles)
    bridge = hasattr(loaded.model, "begin")
    settings = loaded.model.sampling(nfe) if bridge else {"method": "heun", "grid": "time", "nfe": nfe}
    begin = loaded.model.begin(start, spare) if bridge else start
    with torch.no_grad():
        made = sample(loaded.model, begin, **settings, model_kwargs=conditions, seed=_SEED)
    assert isinstance(made, Tensor)
    return Restored(images, conditions["condition"][:, : images.shape[1]], made)
