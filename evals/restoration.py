"""Images restored by a trained folder that sees a degraded one, and how far they are from the originals.

`python -m pathline.evals.restoration FOLDER --nfe 5,20` measures test images and shows some of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pathline.samplers import keyed_normal, sample
from pathline.samplers.calibrate.trajectories import mean_error
from pathline.training import LoadedPipeline, degradation_from_config, load_data, load_pipeline, save_preview

from .settings import parse_integers

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


def measure(folder: Path, budgets: Sequence[int], count: int, sheet: Path, shown: int = 16) -> dict[str, float]:
    """Mean RMSE per value to test images by budget, and that of what the network sees ("seen").

    Writes a picture of three rows: what is seen, what the largest budget makes of it, the originals.
    """
    loaded = load_pipeline(folder)
    options = loaded.metadata["training"]["options"]
    data = load_data(
        options["dataset_name"],
        data_dir=options["train_data_dir"],
        resolution=options["resolution"],
        center_crop=options["center_crop"],
        split="test",
    )
    images = data.tensor()[:count]
    runs = {nfe: restore(loaded, images, nfe) for nfe in budgets}
    last = runs[max(budgets)]
    save_preview(sheet, torch.cat([part[:shown] for part in (last.seen, last.made, last.images)]), columns=shown)
    return {"seen": last.errors[0], **{str(nfe): run.errors[1] for nfe, run in runs.items()}}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure how well a trained folder restores test images."""
    parser = argparse.ArgumentParser(prog="python -m pathline.evals.restoration", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nfe", default="5,20", help="network evaluations")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("out/restored.png"), help="the picture")
    given = parser.parse_args(arguments)
    for name, error in measure(given.folder, parse_integers(given.nfe), given.images, given.out).items():
        print(f"{name if name == 'seen' else name + ' evaluations':>15}  {error:.4f}")
    print(f"picture in {given.out}")


if __name__ == "__main__":
    main()
