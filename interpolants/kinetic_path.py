"""Gaussian paths of least kinetic energy for the data at hand.

Shaul, Chen, Nickel, Le and Lipman, "On kinetic optimal probability paths for generative models", ICML 2023
(arXiv:2306.06626). With the data centred and of variance scale² per coordinate, and scale·signal = r sin θ,
noise = r cos θ, the energy of the marginal velocity is, per coordinate,

    ∫ E|velocity|² dt / d = ∫ (r'² + γ(θ) r² θ'²) dt,     γ(θ) = 1 − (1 − Λ(tan θ)) / cos² θ,

where Λ(u) = E|E[x|x + z/u]|² / d, with x the normalised data, tells how far noise of size 1/u leaves the data apart.
In the angle Θ = ∫ √γ dθ this is the energy of a curve in the plane, so that the best path is the straight segment from
(1, 0) to the point at distance `scale` and angle Θ(π/2). The paper solves for it with a small network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .errors import check_positive
from .flow_paths import PureNoisePath
from .path import GaussianPath

Separation = Callable[[Tensor], Tensor]
"""Λ, of float64 values u > 0 of the signal-to-noise ratio of normalised data."""

_HALF_PI = math.pi / 2
_QUADRATURE = 4000
_END = 0.125  # of a piece: how far before θ = π/2, where γ is 0/0, it is evaluated


def metric_angles(pieces: int) -> Tensor:
    """Angles at which `KineticOptimalPath` takes γ, float64 (pieces + 1,): evenly spaced from 0 to just below π/2."""
    angles = torch.linspace(0.0, _HALF_PI, pieces + 1, dtype=torch.float64)
    angles[-1] -= _END * angles[1]
    return angles


@dataclass(frozen=True)
class KineticOptimalPath(PureNoisePath):
    """The path of least kinetic energy under a metric γ; with the default γ = 1 it is the linear path.

    Parameters
    ----------
    metric : tuple of K + 1 floats in [0, 1]
        γ at `metric_angles(K)`; √γ is linear in between. 1 where noise does not mix the data, 0 where the data are as
        good as normal.
    scale : float > 0
        Standard deviation of the data per coordinate. Their mean plays no part: what it adds to the energy is least
        on a linear path.
    floor : float in (0, 1]
        Least γ to count with. γ(0) is 0 for all data, and with it the optimal rates would be infinite at t = 0, where
        the variance of a training target then diverges; with it `signal_rate(0)` is at most 1/√floor.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    metric: tuple[float, ...] = (1.0, 1.0)
    scale: float = 1.0
    floor: float = 0.01

    name: ClassVar[str] = "kinetic-optimal"

    def __post_init__(self) -> None:
        values = tuple(float(value) for value in self.metric)
        if len(values) < 2:
            raise ValueError(f"metric must be a list of at least 2 numbers, got {len(values)}")
        for index, value in enumerate(values):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"metric must lie in [0, 1], got {value!r} at index {index}")
        check_positive("scale", self.scale)
        if not 0.0 < self.floor <= 1.0:
            raise ValueError(f"floor must lie in (0, 1], got {self.floor!r}")
        object.__setattr__(self, "metric", values)

    @classmethod
    def from_separation(
        cls, separation: Separation, *, pieces: int = 128, scale: float = 1.0, floor: float = 0.01
    ) -> KineticOptimalPath:
        """Make the path for a data separation function Λ, evaluated at tan `metric_angles(pieces)`.

        Raises
        ------
        ValueError
            If there are no pieces, or the function does not give one value for each.
        """
        if pieces < 1:
            raise ValueError(f"pieces must be at least 1, got {pieces!r}")
        angles = metric_angles(pieces)[1:]
        values = separation(angles.tan())
        if values.shape != angles.shape:
            raise ValueError(
                f"separation must give values of shape {tuple(angles.shape)}, one for each of its arguments, got "
                f"{tuple(values.shape)}"
            )
        metric = (1 - (1 - values.double()) / angles.cos().square()).clamp(0, 1)
        return cls((0.0, *metric.tolist()), scale, floor)

    @property
    def energy(self) -> float:
        """Kinetic energy of this path per coordinate, under the metric with its floor: |p1 − p0|² of the segment."""
        # (1 − scale)² + 4 scale sin²(Θ/2) has no cancellation.
        return (1 - self.scale) ** 2 + 4 * self.scale * math.sin(0.5 * self._length) ** 2

    def energy_of(self, path: GaussianPath) -> float:
        """Kinetic energy per coordinate of any path on the data of this metric (without its floor).

        A path with infinite rates gives the value of a midpoint rule, or infinity.
        """
        t = (torch.arange(_QUADRATURE, dtype=torch.float64) + 0.5) / _QUADRATURE
        signal, noise = self.scale * path.signal(t), path.noise(t)
        rate, product = self.scale * path.signal_rate(t), path.noise_noise_rate(t)
        square = signal.square() + noise.square()
        place = (torch.atan2(signal, noise) / self._width).clamp(max=self.pieces)
        index = place.floor().clamp(max=self.pieces - 1).long()
        roots = torch.tensor(self.metric, dtype=torch.float64).sqrt()
        root = torch.lerp(roots[index], roots[index + 1], place - index)
        turning = rate * noise - signal * path.noise_rate(t)
        return float((((signal * rate + product).square() + (root * turning).square()) / square).mean())

    @property
    def pieces(self) -> int:
        """Number K of pieces of the metric."""
        return len(self.metric) - 1

    @property
    def _width(self) -> float:
        return _HALF_PI / self.pieces

    @cached_property
    def _pieces(self) -> dict[str, Tensor]:
        """√γ at the angles and Θ up to them, from 0 ("start") and, both reversed, from π/2 ("end")."""
        roots = torch.tensor(self.metric, dtype=torch.float64).clamp(min=self.floor).sqrt()
        found = {}
        for side, values in (("start", roots), ("end", roots.flip(0))):
            areas = (0.5 * self._width) * (values[1:] + values[:-1])
            found[side] = torch.stack([values, torch.cat([areas.new_zeros(1), areas.cumsum(0)])])
        return found

    @cached_property
    def _length(self) -> float:
        return float(self._pieces["start"][1, -1])

    @cached_property
    def _casts(self) -> dict[tuple[str, torch.dtype, torch.device], Tensor]:
        return {}

    def _knots(self, side: str, like: Tensor) -> Tensor:
        key = (side, like.dtype, like.device)
        if key not in self._casts:
            self._casts[key] = self._pieces[side].to(dtype=like.dtype).to(like.device)
        return self._casts[key]

    def _angle(self, side: str, length: Tensor) -> tuple[Tensor, Tensor]:
        """θ (or π/2 − θ, from the end) at a value of Θ, and √γ there."""
        roots, lengths = self._knots(side, length)
        index = torch.searchsorted(lengths, length.detach().contiguous(), right=True)
        index = (index - 1).clamp(0, self.pieces - 1)
        first, slope = roots[index], (roots[index + 1] - roots[index]) / self._width
        rest = length - lengths[index]
        root = (first.square() + 2 * slope * rest).sqrt()
        return index.to(length) * self._width + 2 * rest / (first + root), root

    def _area(self, side: str, angle: Tensor) -> Tensor:
        """Inverse of `_angle`."""
        roots, lengths = self._knots(side, angle)
        index = (angle.detach() / self._width).floor().clamp(0, self.pieces - 1).long()
        first, slope = roots[index], (roots[index + 1] - roots[index]) / self._width
        rest = angle - index.to(angle) * self._width
        return lengths[index] + rest * (first + 0.5 * slope * rest)

    def _polar(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """r, and Θ counted from both ends, which are exact where they are small."""
        sine, cosine, tau = self.scale * math.sin(self._length), math.cos(self._length), 1 - t
        along, back = tau + t * self.scale * cosine, t * self.scale + tau * cosine
        radius = (along.square() + (t * sine).square()).sqrt()
        return radius, torch.atan2(t * sine, along), torch.atan2(tau * math.sin(self._length), back)

    def _signal(self, t: Tensor) -> Tensor:
        radius, length, _ = self._polar(t)
        return radius * self._angle("start", length)[0].sin() / self.scale

    def _noise(self, t: Tensor) -> Tensor:
        radius, _, length = self._polar(t)
        return radius * self._angle("end", length)[0].sin()

    def _rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        radius, length, back = self._polar(t)
        (angle, root), (rest, _) = self._angle("start", length), self._angle("end", back)
        cosine = math.cos(self._length)
        half_rate = t * self.scale**2 - (1 - t) + (1 - 2 * t) * self.scale * cosine  # of r²
        outward, around = half_rate / radius, self.scale * math.sin(self._length) / (radius * root)
        return (outward * angle.sin() + around * rest.sin()) / self.scale, outward * rest.sin() - around * angle.sin()

    def _signal_rate(self, t: Tensor) -> Tensor:
        return self._rates(t)[0]

    def _noise_rate(self, t: Tensor) -> Tensor:
        return self._rates(t)[1]

    def _lam(self, t: Tensor) -> Tensor:
        _, length, back = self._polar(t)
        angle, rest = self._angle("start", length)[0], self._angle("end", back)[0]
        return angle.sin().log() - rest.sin().log() - math.log(self.scale)

    def _time_at(self, lam: Tensor) -> Tensor:
        ratio = lam + math.log(self.scale)
        first = self._area("start", ratio.exp().atan()).sin()
        last = self.scale * self._area("end", (-ratio).exp().atan()).sin()
        return first / (first + last)

    def __repr__(self) -> str:
        return (
            f"KineticOptimalPath({self.pieces} pieces, scale={self.scale:.6g}, floor={self.floor:.6g}, "
            f"energy {self.energy:.6g})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"metric": self.metric, "scale": self.scale, "floor": self.floor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
