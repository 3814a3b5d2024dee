"""Flows between two laws in the plane, from eight Gaussians to two moons, with any coupling: seconds to train.

The laws are those of Tong et al., arXiv:2302.00482; the moons' halves serve as classes, as in Cheng and Schwing,
arXiv:2503.10636.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pathline.interpolants import Coupling, LinearPath
from pathline.interpolants.couplings.costs import squared_distance
from pathline.interpolants.couplings.pairing import assigned
from pathline.samplers import sample
from pathline.training import GaussianObjective

CLASSES = 2


def eight_gaussians(count: int, generator: torch.Generator) -> Tensor:
    """Samples (count, 2) of eight equal Gaussians of variance 0.1 on a circle of radius 5."""
    place = torch.randint(8, (count,), generator=generator) * (math.pi / 4)
    noise = torch.randn(count, 2, generator=generator)
    return 5.0 * torch.stack([place.cos(), place.sin()], 1) + math.sqrt(0.1) * noise


def two_moons(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Samples (count, 2) of two half circles with noise 0.2, times 3 less 1, and the half of each, (count,)."""
    classes = torch.randint(CLASSES, (count,), generator=generator)
    angle = math.pi * torch.rand(count, generator=generator)
    outer = torch.stack([angle.cos(), angle.sin()], 1)
    inner = torch.stack([1 - angle.cos(), 0.5 - angle.sin()], 1)
    points = torch.where(classes[:, None] == 0, outer, inner)
    return 3.0 * (points + 0.2 * torch.randn(count, 2, generator=generator)) - 1.0, classes


class ToyVelocity(nn.Module):
    """A perceptron of x (B, 2), t (B,) and perhaps class_labels (B,)."""

    def __init__(self, conditional: bool, width: int = 128, seed: int = 0) -> None:
        super().__init__()
        self.conditional = conditional
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            sizes = [3 + CLASSES * conditional, width, width, width]
            hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.SiLU())]
            self.layers = nn.Sequential(*hidden, nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Velocity (B, 2)."""
        columns = [x, t[:, None].to(x)]
        if self.conditional:
            assert class_labels is not None
            columns.append(nn.functional.one_hot(class_labels, CLASSES).to(x))
        velocity: Tensor = self.layers(torch.cat(columns, 1))
        return velocity


class ToyPairs(NamedTuple):
    """Pairs of a coupling: base and data (N, 2), and the classes of the data (N,) or None."""

    base: Tensor
    data: Tensor
    labels: Tensor | None

    @property
    def cost(self) -> float:
        """Mean squared distance of a pair."""
        return float((self.data - self.base).square().sum(1).mean())


def draw_pairs(
    coupling: Coupling, count: int, block: int, generator: torch.Generator, *, conditional: bool
) -> ToyPairs:
    """At least `count` pairs from eight Gaussians to two moons, coupled `block` at a time in sight of the classes."""
    blocks = []
    for _ in range(-(-count // block)):
        base = eight_gaussians(block, generator)
        data, labels = two_moons(block, generator)
        pairs = coupling(base, data, labels, generator)
        blocks.append((base[pairs.base], data[pairs.data], labels[pairs.data]))
    base, data, labels = (torch.cat(part) for part in zip(*blocks, strict=True))
    return ToyPairs(base, data, labels if conditional else None)


def train_toy(
    model: ToyVelocity,
    pairs: ToyPairs,
    *,
    steps: int,
    batch: int = 256,
    rate: float = 2e-3,
    generator: torch.Generator,
) -> None:
    """Fit the velocity of the linear interpolant to pairs that are drawn again and again, with new times."""
    objective = GaussianObjective(LinearPath(), "velocity")
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        here = torch.randint(len(pairs.data), (batch,), generator=generator)
        times = objective.times(torch.rand(batch, dtype=torch.float64, generator=generator))
        kwargs = {} if pairs.labels is None else {"class_labels": pairs.labels[here]}
        loss = objective(model, pairs.data[here], pairs.base[here], times, kwargs).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()


def flow_from(model: ToyVelocity, base: Tensor, labels: Tensor | None, steps: int | None) -> Tensor:
    """Ends of the flow: Euler's method in equal steps, or Dormand and Prince's where `steps` is None."""
    settings: dict[str, Any] = {"method": "euler", "grid": "time", "nfe": steps}
    if steps is None:
        settings = {"method": "dopri5", "rtol": 1e-5, "atol": 1e-5}
    kwargs = None if labels is None else {"class_labels": labels}
    with torch.no_grad():
        made = sample(model, base, path=LinearPath(), prediction="velocity", model_kwargs=kwargs, **settings)
    assert isinstance(made, Tensor)
    return made


def transport_distance(made: Tensor, data: Tensor, made_labels: Tensor | None, data_labels: Tensor | None) -> float:
    """Squared Wasserstein distance of two samples of equal sizes; with classes, the mean of those within each.

    Classes are cut to the smaller of their two samples.
    """
    if made_labels is None or data_labels is None:
        return _distance(made, data)
    found = []
    for label in range(CLASSES):
        first, second = made[made_labels == label], data[data_labels == label]
        count = min(len(first), len(second))
        found.append(_distance(first[:count], second[:count]))
    return sum(found) / len(found)


def _distance(first: Tensor, second: Tensor) -> float:
    cost = squared_distance(first, second)
    pairs = assigned(cost.numpy())
    return float(cost[pairs.base, pairs.data].mean())
