"""Small networks on 8×8 digits, and what is measured of what they draw: for experiments that take a minute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from pathline.evals.distances import frechet_from_moments
from pathline.interpolants import EDMPath
from pathline.samplers import sample
from pathline.training import EDMWeight, GaussianObjective, LogNormalSigma, load_data

PATH = EDMPath(sigma_max=20.0)
OBJECTIVE = GaussianObjective(PATH, "data", weight=EDMWeight(0.7), density=LogNormalSigma(-0.6, 1.2))
CLASSES, PIXELS, SPREAD = 10, 64, 0.7


def digits() -> tuple[Tensor, Tensor]:
    """All 1797 digits as vectors (N, 64) in [-1, 1], and their labels (N,)."""
    batch = load_data("digits", split="all")
    everything = batch.__getitems__(range(len(batch)))
    assert everything.labels is not None
    return everything.images.flatten(1), everything.labels


class Features(nn.Module):
    """A residual perceptron on (x / spread, log noise, class)."""

    def __init__(self, outputs: int, classes: int = 0, width: int = 256) -> None:
        super().__init__()
        self.enter = nn.Linear(PIXELS + 32, width)
        self.classes = nn.Embedding(max(classes, 1), width)
        self.blocks = nn.ModuleList([nn.Sequential(nn.SiLU(), nn.Linear(width, width)) for _ in range(3)])
        self.leave = nn.Linear(width, outputs)
        self.register_buffer("frequencies", torch.exp(torch.linspace(-2, 2, 16)))

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = PATH.noise(t.double()).float().clamp(min=1e-3)
        angles = 0.25 * sigma.log()[:, None] * self.frequencies
        h = self.enter(torch.cat([x / (sigma.square() + SPREAD**2).sqrt()[:, None], angles.sin(), angles.cos()], 1))
        if class_labels is not None:
            h = h + self.classes(class_labels)
        for block in self.blocks:
            h = h + block(h)
        return self.leave(torch.nn.functional.silu(h))


class Denoiser(Features):
    """The data prediction, EDM-preconditioned."""

    def __init__(self, classes: int = 0) -> None:
        super().__init__(PIXELS, classes)

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        sigma = PATH.noise(t.double()).float()[:, None]
        power = sigma.square() + SPREAD**2
        return SPREAD**2 / power * x + sigma * SPREAD / power.sqrt() * super().forward(x, t, class_labels)


def fit(
    network: nn.Module, losses: Callable[[Tensor, Tensor, Tensor], Tensor], count: int, steps: int, seed: int = 0
) -> None:
    """Minimise the mean of losses(indices, noise, t) with Adam; an average of the weights is what is left."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(count, (256,), generator=generator)
        noise = torch.randn(256, PIXELS, generator=generator)
        t = OBJECTIVE.times(torch.rand(256, generator=generator, dtype=torch.float64))
        loss = losses(index, noise, t).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def draw(network: nn.Module, count: int, labels: Tensor | None = None, seed: int = 1) -> Tensor:
    """Samples (count, 64) with 20 evaluations."""
    start = PATH.prior((count, PIXELS), torch.Generator().manual_seed(seed))
    kwargs = {} if labels is None else {"class_labels": labels}
    with torch.no_grad():
        result = sample(
            network, start, path=PATH, method="dpm++", grid="karras", nfe=20, prediction="data", model_kwargs=kwargs
        )
    assert isinstance(result, Tensor)
    return result


def judge() -> Callable[[Tensor], np.ndarray]:
    """A classifier of clean digits: a support vector machine on all of them, right labels."""
    from sklearn.svm import SVC

    images, labels = digits()
    machine = SVC(gamma="scale", C=10.0).fit(images.numpy(), labels.numpy())
    return lambda x: machine.predict(x.clamp(-1, 1).numpy())


def frechet(first: Tensor, second: Tensor) -> float:
    """Squared Fréchet distance of pixels between two sets of vectors."""
    a, b = first.double().numpy(), second.double().numpy()
    return frechet_from_moments(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
