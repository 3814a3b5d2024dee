"""Pairs of a noise and the sample that a trained model makes of it, to train on again.

Liu, Gong and Liu, "Flow straight and fast: learning to generate and transfer data with rectified flow", ICLR 2023
(arXiv:2209.03003). Training on such pairs keeps both laws, does not raise any convex transport cost, and straightens
the paths, so that fewer steps do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants import GaussianPath, convert
from pathline.samplers import keyed_normal, list_adaptive, plan, sample

from .batches import PAIR
from .data import Batch
from .export import LoadedPipeline, load_pipeline
from .files import checksum
from .tensor_files import read_metadata, read_tensors, save_tensors

PAIRS = "pairs"
_PART = 1024  # pairs of a file: what an interrupted run draws again


class PairSet:
    """A set of images that each come with the noise they were made of.

    The pairs are drawn, or read if they are there, by `draw`; before it only their number and shape are known.

    Parameters
    ----------
    source : str
        Trained folder, or any pipeline that `load_pipeline` opens; its classes come in turn.
    count : int
    seed : int
        Noise i is keyed by (seed, i).
    method : str, optional
        Sampler; by default the one `sample` takes for the budget. Stochastic ones would pair noises with samples of
        others, and are refused.
    nfe : int
        Network calls of a sample.

    Raises
    ------
    ValueError
        If the model cannot be opened, or the sampler is unknown, stochastic, or needs more calls.
    """

    def __init__(
        self,
        source: str,
        count: int,
        *,
        seed: int = 0,
        method: str | None = None,
        nfe: int = 100,
    ) -> None:
        teacher = load_pipeline(source)
        if teacher.metadata.get("image_condition") is not None:
            raise ValueError(f"{source} restores images; pairs need a model that draws from noise alone")
        if method not in list_adaptive():
            table = plan(teacher.path, method, nfe=nfe, prediction=teacher.prediction)
            if table.stochastic:
                raise ValueError(f"reflow_method {method!r} adds noise; pairs need one that follows the flow")
        elif str(method).startswith("sde"):
            raise ValueError(f"reflow_method {method!r} adds noise; pairs need one that follows the flow")
        self.name, self.shape = f"samples of {source}", teacher.shape
        self.classes: tuple[str, ...] = tuple(teacher.metadata.get("classes") or ())
        self._source, self._count = source, count
        weights = teacher_identity(Path(source))
        self._settings = {"weights": weights, "count": count, "seed": seed, "method": method, "nfe": nfe}
        self._tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self._count

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Samples, labels and noises at these indices."""
        where = torch.as_tensor(indices, dtype=torch.int64)
        labels = where % len(self.classes) if self.classes else None
        return Batch(self._tensors["sample"][where], labels, self._tensors["noise"][where])

    def draw(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        share: tuple[int, int] = (0, 1),
        wait: Callable[[], None] = lambda: None,
    ) -> None:
        """Draw the parts that `folder` lacks, then read all.

        Parameters
        ----------
        folder : Path
            Each part is a file that appears whole, so an interrupted run goes on where it was.
        device : where the model runs
        share : (process, processes)
            Each process draws some of the parts.
        wait : callable
            Returns when all processes have called it.

        Raises
        ------
        ValueError
            If a file there is damaged or was drawn from another model or under other settings; it is named.
        """
        settings = json.dumps(self._settings, sort_keys=True)
        parts = [folder / f"pairs-{start:07d}.safetensors" for start in range(0, self._count, _PART)]
        for path in parts:
            if path.is_file() and read_metadata(path).get("settings") != settings:
                raise ValueError(
                    f"{path} was drawn from another model or under other settings: {read_metadata(path)}; remove "
                    f"{folder} to draw pairs anew"
                )
        mine = [k for k, path in enumerate(parts) if k % share[1] == share[0] and not path.is_file()]
        if mine:
            teacher = load_pipeline(self._source, device)
            for number in mine:
                save_tensors(parts[number], self._part(teacher, number * _PART, device), {"settings": settings})
        wait()
        read = [read_tensors(path) for path in parts]
        self._tensors = {key: torch.cat([part[key] for part in read]) for key in ("noise", "sample")}

    def _part(self, teacher: LoadedPipeline, start: int, device: torch.device | str) -> dict[str, Tensor]:
        settings: dict[str, Any] = self._settings
        indices = torch.arange(start, min(start + _PART, self._count), device=device)
        noise = keyed_normal(self.shape, settings["seed"], indices, slot=PAIR, device=device)
        labels = {"class_labels": indices % len(self.classes)} if self.classes else {}
        made = simulate(
            teacher.model, noise, teacher.path, method=settings["method"], nfe=settings["nfe"], model_kwargs=labels
        )
        return {"noise": noise, "sample": made}


def teacher_identity(folder: Path) -> str:
    """Checksum over the weights of a trained folder."""
    return "-".join(checksum(path) for path in sorted(folder.glob("*/diffusion_pytorch_model*.safetensors")))


@torch.no_grad()
def simulate(
    model: Callable[..., Tensor],
    noise: Tensor,
    path: GaussianPath,
    *,
    prediction: str | None = None,
    method: str | None = None,
    nfe: int = 100,
    chunk_size: int = 256,
    model_kwargs: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Samples (B, ...) that a model makes of standard normals of their shape, by its flow."""
    start = noise * float(path.noise(0.0))
    given: dict[str, Any] = {"method": method, "nfe": nfe, "prediction": prediction, "model_kwargs": model_kwargs}
    made = sample(model, start, path=path, chunk_size=chunk_size, **given)
    assert isinstance(made, Tensor)
    return made


@torch.no_grad()
def straightness(
    model: Callable[..., Tensor],
    start: Tensor,
    path: GaussianPath,
    *,
    prediction: str = "velocity",
    steps: int = 50,
    model_kwargs: Mapping[str, Any] | None = None,
) -> float:
    """∫ E|X_1 − X_0 − dX/dt|² dt of the flow of a model, per entry of a sample; 0 where all paths are straight.

    Parameters
    ----------
    model : callable (x, t, **model_kwargs) -> output
    start : Tensor (B, ...)
        States at time 0; the flow is followed by the midpoint rule.
    path : GaussianPath
    prediction : str
        What the model returns.
    steps : int
    """
    low, high = path.train_interval("velocity")
    ends = torch.linspace(low, high, steps + 1, dtype=torch.float64)

    def velocity(x: Tensor, t: float) -> Tensor:
        times = torch.full((len(x),), t, dtype=x.dtype, device=x.device)
        output = model(x, times, **(model_kwargs or {}))
        if prediction == "velocity":
            return output
        return convert(x, output, path.at(times), prediction, "velocity")

    x, rates = start, []
    for before, after in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        middle = x + 0.5 * (after - before) * velocity(x, before)
        rates.append(velocity(middle, 0.5 * (before + after)))
        x = x + (after - before) * rates[-1]
    whole = (x - start) / (high - low)
    return float(torch.stack([(whole - rate).square().mean() for rate in rates]).mean())
