"""Closed-form networks that the calibration tests share, with their start noises."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pathline.interpolants import GaussianMixture, GaussianPath
from pathline.samplers import ClassifierFree
from pathline.samplers.calibrate.trajectories import Problem

BED = GaussianMixture(
    [0.3, 0.3, 0.4], np.random.default_rng(0).normal(size=(3, 16)), std=[0.3, 0.2, 0.4], classes=[0, 1, 1]
)


def bed_problem(path: GaussianPath, batch: int, guidance: float = 0.0, **options: Any) -> Problem:
    """The data network of `BED`, guided between its two classes where a scale is given."""
    labels = {"labels": torch.arange(batch) % 2} if guidance else {}
    free = ClassifierFree(guidance, {"labels": torch.full((batch,), -1)}) if guidance else None
    return Problem(BED.as_model(path, "data"), path, "data", free, labels, **options)


def six_problem(path: GaussianPath, dimension: int, budget: int | None = None) -> Problem:
    """The velocity network of six components."""
    rng = np.random.default_rng(3)
    means, variances = rng.standard_normal((6, dimension)), rng.uniform(0.01, 0.3, (6, dimension))
    mixture = GaussianMixture(np.full(6, 1 / 6), means, variances=variances)
    return Problem(mixture.as_model(path, "velocity"), path, "velocity", budget=budget)


def starts(path: GaussianPath, count: int, dimension: int = 16, seed: int = 1) -> Tensor:
    """Start noises (count, dimension)."""
    return path.prior((count, dimension), torch.Generator().manual_seed(seed), dtype=torch.float64)
