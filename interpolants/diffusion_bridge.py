"""Diffusion bridges: a diffusion conditioned on where it starts and ends.

With a reference path of signal and noise, r = noise / signal and s(t) = (r(t) / r(0))^2, the reference diffusion
pinned at the data (t = 1) and at the source (t = 0) has the law

    x_t = (signal(t) / signal(0)) s * source + signal(t) (1 - s) * data + noise(t) sqrt(1 - s) * z .

Zhou, Lou, Khanna and Ermon, "Denoising diffusion bridge models" (2024), eq. 8; Zheng et al., "Diffusion bridge
implicit models" (2025), eq. 4; I2SB (Liu et al. 2023) has a reference of signal 1.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .dynamics import Epsilon, sbdm_epsilon
from .ends import EndPair
from .interpolant import StochasticInterpolant
from .latent import LatentCoefficient
from .path import GaussianPath, PathPoint


def _share(reference: GaussianPath, t: Tensor) -> tuple[PathPoint, Tensor, Tensor]:
    """(point, s, ds/dt); the rate is finite also where that of the noise is not."""
    point, start = reference.at(t), reference.at(0.0)
    scale = (start.signal / start.noise).square().to(t)
    share = scale * (point.noise / point.signal).square()
    drop = point.noise.square() * point.signal_rate - point.signal * reference.noise_noise_rate(t)
    return point, share, -2 * scale * drop / point.signal.pow(3)


@dataclass(frozen=True)
class BridgeEnds(EndPair):
    """Weights of source and data in a bridge of `reference`."""

    reference: GaussianPath

    name: ClassVar[str] = "diffusion_bridge"

    def base(self, t: Tensor) -> Tensor:
        """Signal / signal(0) s."""
        point, share, _ = _share(self.reference, t)
        return point.signal / self.reference.signal(0.0).to(t) * share

    def data(self, t: Tensor) -> Tensor:
        """Signal (1 - s)."""
        point, share, _ = _share(self.reference, t)
        return point.signal * (1 - share)

    def base_rate(self, t: Tensor) -> Tensor:
        """Rate of `base`."""
        point, share, rate = _share(self.reference, t)
        return (point.signal_rate * share + point.signal * rate) / self.reference.signal(0.0).to(t)

    def data_rate(self, t: Tensor) -> Tensor:
        """Rate of `data`."""
        point, share, rate = _share(self.reference, t)
        return point.signal_rate * (1 - share) - point.signal * rate


@dataclass(frozen=True)
class BridgeLatent(LatentCoefficient):
    """Standard deviation of a bridge of `reference`: noise sqrt(1 - s), zero at both ends."""

    reference: GaussianPath

    name: ClassVar[str] = "diffusion_bridge"

    def value(self, t: Tensor) -> Tensor:
        """Noise times the root of 1 - s."""
        point, share, _ = _share(self.reference, t)
        return point.noise * (1 - share).clamp(min=0).sqrt()

    def rate(self, t: Tensor) -> Tensor:
        """Product over value; infinite at both ends."""
        return self.product(t) / self.value(t)

    def product(self, t: Tensor) -> Tensor:
        """Noise noise' (1 - s) - noise^2 s' / 2."""
        point, share, rate = _share(self.reference, t)
        return self.reference.noise_noise_rate(t) * (1 - share) - 0.5 * point.noise.square() * rate

    @property
    def peak(self) -> float:
        """Not larger than half the largest noise of the reference, at s = 1/2 for signal 1."""
        return 0.5 * self.reference.noise(0.0).item()


class DiffusionBridge(StochasticInterpolant):
    """The bridge of a reference path whose noise is finite at t = 0 and 0 at t = 1.

    DDBM-VP is ``DiffusionBridge(VPPath(beta_min=0.1, beta_max=2.1))``, DDBM-VE
    ``DiffusionBridge(EDMPath(sigma_max=80, rho=1))``.

    Parameters
    ----------
    reference : GaussianPath

    Raises
    ------
    ValueError
        If the reference has no signal at t = 0 or some noise at t = 1.
    """

    def __init__(self, reference: GaussianPath) -> None:
        start, end = reference.at(0.0), reference.at(1.0)
        if not (start.signal.item() > 0 and end.noise.item() == 0):
            raise ValueError(
                f"a bridge needs a reference path with signal above 0 at t = 0 and noise 0 at t = 1, but "
                f"{reference.name!r} has signal {start.signal.item():g} and noise {end.noise.item():g} there"
            )
        super().__init__(BridgeEnds(reference), BridgeLatent(reference))

    @property
    def reference(self) -> GaussianPath:
        """The path of the diffusion that is pinned."""
        assert isinstance(self.ends, BridgeEnds)
        return self.ends.reference

    @property
    def epsilon(self) -> Epsilon:
        """Half the squared diffusion of the reference: the noise level of the bridge's own SDE."""
        return sbdm_epsilon(self.reference)
