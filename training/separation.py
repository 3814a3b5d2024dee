"""How far noise leaves the samples of a data set apart, and the kinetic-optimal path that follows.

Shaul et al., "On kinetic optimal probability paths for generative models", ICML 2023 (arXiv:2306.06626), section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pathline.interpolants import KineticOptimalPath, metric_angles

_CHUNK = 1 << 23  # entries of a matrix of draws and samples


class SeparationEstimate(NamedTuple):
    """What `estimate_separation` found.

    Attributes
    ----------
    ratios : float64 Tensor (K,)
        Signal-to-noise ratios u of the data divided by their standard deviation.
    separation : float64 Tensor (K,)
        Λ(u), in [0, 1].
    metric : tuple of K + 1 floats
        γ at `metric_angles(K)`, for `KineticOptimalPath`.
    scale : float
        Standard deviation of the data, per coordinate.
    """

    ratios: Tensor
    separation: Tensor
    metric: tuple[float, ...]
    scale: float

    def path(self, floor: float = 0.01) -> KineticOptimalPath:
        """The path of least kinetic energy for these data."""
        return KineticOptimalPath(self.metric, self.scale, floor)


@torch.no_grad()
def estimate_separation(
    data: Tensor, *, pieces: int = 64, draws: int = 1024, generator: torch.Generator | None = None
) -> SeparationEstimate:
    """Data separation Λ(u) = E|E[x|x + z/u]|²/d of samples, their posterior means being exact sums over all of them.

    Every level sees the same draws, samples in turn and normal noises. At low u the mean of |E[x|x + z/u]|² is taken as
    it stands, at high u that of the posterior error, 1 − Λ, with a smooth passage between: each is the one of which
    γ(θ) = 1 − (1 − Λ)/cos² θ keeps the digits.

    Parameters
    ----------
    data : Tensor (N, ...)
        They are centred and divided by their standard deviation.
    pieces : int
        Levels K, at u = tan `metric_angles(K)` without the first, where γ is 0.
    draws : int
        The work is pieces·draws·N·(size of a sample) multiplications.
    generator : torch.Generator, optional
        On the CPU.

    Raises
    ------
    ValueError
        If there are fewer than two different samples, values are not finite, or a number is below 1.
    """
    for name, value in (("pieces", pieces), ("draws", draws)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value!r}")
    if data.ndim < 2 or len(data) < 2 or not bool(data.isfinite().all()):
        raise ValueError(f"data must be at least 2 finite samples, (N, ...), got shape {tuple(data.shape)}")
    points = data.detach().double().flatten(1)
    points = points - points.mean(0)
    scale = float(points.square().mean().sqrt())
    if not scale > 0:
        raise ValueError(f"the {len(data)} samples of data are all the same; a separation needs different ones")
    points = points / scale
    order = [torch.randperm(len(points), generator=generator) for _ in range(-(-draws // len(points)))]
    chosen = torch.cat(order)[:draws]
    ratios = metric_angles(pieces)[1:].tan()
    shares = torch.zeros(2, pieces, dtype=torch.float64)
    for part in chosen.split(max(1, _CHUNK // len(points))):
        noise = torch.randn(len(part), points.shape[1], dtype=torch.float64, generator=generator)
        shares += _sums(points, points[part.to(points.device)], noise.to(points.device), ratios)
    mean_square, error = (shares / (draws * points.shape[1])).clamp(max=1)
    cosine = 1 / (1 + ratios.square())  # squared
    early = cosine.square() / (cosine.square() + (1 - cosine).square())
    mixed = early * (1 - mean_square) + (1 - early) * error
    metric = (1 - mixed / cosine).clamp(0, 1)
    return SeparationEstimate(ratios, 1 - mixed, (0.0, *metric.tolist()), scale)


def _sums(points: Tensor, own: Tensor, noise: Tensor, ratios: Tensor) -> Tensor:
    """Sums over draws of |D|² and |x − D|², (2, K), where D is the posterior mean at x + z/u."""
    # −|x + z/u − y|²u²/2 less what all y share, from differences: for large u the terms cancel.
    alike = own @ points.T - 0.5 * points.square().sum(1) - 0.5 * own.square().sum(1, keepdim=True)
    along = noise @ points.T - (noise * own).sum(1, keepdim=True)
    found = []
    for ratio in ratios.tolist():
        mean = torch.softmax(ratio**2 * alike + ratio * along, dim=1) @ points
        found.append(torch.stack([mean.square().sum(), (own - mean).square().sum()]))
    return torch.stack(found, dim=1).cpu()
