"""Gaussian data, alone and as a coupled pair."""

import math
from typing import Any

import torch
from torch import Tensor

from .interpolant import InterpolantPoint
from .targets import Level, Target
from .tensors import as_float_tensor, match

_SYMMETRY = 1e-10


def _as_covariance(name: str, value: Any, dimension: int) -> Tensor:
    matrix = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    if tuple(matrix.shape) != (dimension, dimension):
        raise ValueError(f"{name} must have shape ({dimension}, {dimension}), got {tuple(matrix.shape)}")
    if not bool((matrix - matrix.T).abs().max() <= _SYMMETRY * matrix.abs().max().clamp(min=1)):
        raise ValueError(f"{name} must be symmetric and free of NaN")
    return 0.5 * (matrix + matrix.T)


class Gaussian(Target):
    """Data ~ N(mean, covariance).

    Parameters
    ----------
    mean : array, shape (d,) or the shape of one sample
    covariance : array, shape (d, d), optional
        Symmetric, no negative eigenvalue.
    variance : float or array of shape (d,) or of the mean, optional
        Diagonal covariance instead. Exactly one of the two is given.
    """

    def __init__(self, mean: Any, covariance: Any = None, variance: Any = None) -> None:
        centre = torch.as_tensor(mean, dtype=torch.float64).detach().cpu()
        super().__init__(tuple(centre.shape) or (1,))
        self._mean = centre.reshape(-1)
        if (covariance is None) == (variance is None):
            raise ValueError("Gaussian needs exactly one of covariance and variance")
        self._basis: Tensor | None = None
        if covariance is not None:
            matrix = _as_covariance("covariance", covariance, self.dimension)
            self._eigenvalues, self._basis = torch.linalg.eigh(matrix)
            floor = -_SYMMETRY * self._eigenvalues.abs().max().clamp(min=1)
        else:
            values = torch.as_tensor(variance, dtype=torch.float64).detach().cpu().reshape(-1)
            if values.numel() not in (1, self.dimension):
                raise ValueError(f"variance must have 1 or {self.dimension} entries, got {values.numel()}")
            self._eigenvalues, floor = values.expand(self.dimension).clone(), torch.tensor(0.0)
        if not bool((self._eigenvalues >= floor).all()):
            lowest = self._eigenvalues.min().item()
            raise ValueError(f"the covariance must have no negative eigenvalue, got {lowest!r}")
        self._eigenvalues = self._eigenvalues.clamp(min=0)

    @property
    def mean(self) -> Tensor:
        """Mean, shape (d,)."""
        return self._mean

    @property
    def covariance(self) -> Tensor:
        """Covariance, shape (d, d)."""
        if self._basis is None:
            return torch.diag(self._eigenvalues)
        return (self._basis * self._eigenvalues) @ self._basis.T

    def _turn(self, x: Tensor, back: bool = False) -> Tensor:
        if self._basis is None:
            return x
        basis = self._parameter("_basis", x)
        return x @ (basis.T if back else basis)

    def _centred(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
        if labels is not None:
            raise ValueError("a Gaussian target has no classes; labels must be None")
        spectrum = signal.square() * self._parameter("_eigenvalues", x) + noise.square()
        return self._turn(x - signal * self._parameter("_mean", x)), spectrum

    def _moments(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
        centred, spectrum = self._centred(x, signal, noise, labels)
        whitened = centred / spectrum.clamp(min=torch.finfo(x.dtype).tiny)
        data = self._turn(signal * self._parameter("_eigenvalues", x) * whitened, back=True)
        return self._parameter("_mean", x) + data, self._turn(whitened, back=True)

    def _log_density(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> Tensor:
        centred, spectrum = self._centred(x, signal, noise, labels)
        terms = centred.square() / spectrum + spectrum.log() + math.log(2 * math.pi)
        return -0.5 * terms.sum(1)

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        labels: Any = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Draw `n` samples, shape (n, *shape)."""
        if labels is not None:
            raise ValueError("a Gaussian target has no classes; labels must be None")
        z = torch.randn(n, self.dimension, generator=generator, dtype=torch.float64)
        flat = self._mean + self._turn(z * self._eigenvalues.sqrt(), back=True)
        return flat.to(dtype).reshape(n, *self.shape)

    def flow_map(self, x: Tensor, start: tuple[Level, Level], end: tuple[Level, Level]) -> Tensor:
        """Solve the probability-flow ODE exactly from one level of noise to another.

        Along each eigenvector the state keeps its number of standard deviations from the mean.

        Parameters
        ----------
        x : Tensor, shape (B, ...)
            State at `start`.
        start, end : (signal, noise)
            Floats or tensors of shape (B,); a `PathPoint` may be cut to its first two entries.
        """
        flat, signal, noise = self._prepare(x, *start[:2])
        signal_end, noise_end = (match(as_float_tensor(level), flat).reshape(-1, 1) for level in end[:2])
        centred, spectrum = self._centred(flat, signal, noise, None)
        spectrum_end = signal_end.square() * self._parameter("_eigenvalues", flat) + noise_end.square()
        ratio = (spectrum_end / spectrum.clamp(min=torch.finfo(flat.dtype).tiny)).sqrt()
        moved = signal_end * self._parameter("_mean", flat) + self._turn(ratio * centred, back=True)
        return moved.to(x.dtype).reshape(x.shape)


class GaussianCoupling:
    """A jointly Gaussian pair (base, data); every field of an interpolant between them is closed form.

    Albergo, Boffi and Vanden-Eijnden, "Stochastic interpolants", the Gaussian case. States are flat, (B, d).

    Parameters
    ----------
    base, data : Gaussian
        The two laws, of equal dimension.
    cross : array, shape (d, d), optional
        Cov(base, data); zero (independent) when left out. The joint covariance must have no negative eigenvalue.
    """

    def __init__(self, base: Gaussian, data: Gaussian, cross: Any = None) -> None:
        if base.dimension != data.dimension:
            raise ValueError(f"base and data must have equal dimensions, got {base.dimension}, {data.dimension}")
        dimension = base.dimension
        self.base, self.data = base, data
        self.cross = torch.zeros(dimension, dimension, dtype=torch.float64)
        if cross is not None:
            self.cross = torch.as_tensor(cross, dtype=torch.float64).detach().cpu()
            if tuple(self.cross.shape) != (dimension, dimension):
                raise ValueError(f"cross must have shape ({dimension}, {dimension}), got {tuple(self.cross.shape)}")
        joint = torch.cat(
            [
                torch.cat([base.covariance, self.cross], 1),
                torch.cat([self.cross.T, data.covariance], 1),
            ]
        )
        lowest = torch.linalg.eigvalsh(joint).min().item()
        if lowest < -_SYMMETRY * max(1.0, joint.abs().max().item()):
            raise ValueError(f"the joint covariance must have no negative eigenvalue, got {lowest!r}")
        self._joint = joint

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw `n` pairs (base, data), each (n, d) float64."""
        joint = Gaussian(torch.cat([self.base.mean, self.data.mean]), covariance=self._joint)
        pairs = joint.sample(n, generator)
        return pairs[:, : self.base.dimension], pairs[:, self.base.dimension :]

    def _moments(self, point: InterpolantPoint) -> tuple[Tensor, Tensor]:
        a, b, g = (float(entry) for entry in point[:3])
        covariance = a * a * self.base.covariance + b * b * self.data.covariance
        covariance = covariance + a * b * (self.cross + self.cross.T)
        identity = torch.eye(self.base.dimension, dtype=torch.float64)
        return a * self.base.mean + b * self.data.mean, covariance + g * g * identity

    def marginal(self, point: InterpolantPoint) -> Gaussian:
        """Law of x_t; `point` has scalar entries."""
        mean, covariance = self._moments(point)
        return Gaussian(mean, covariance=covariance)

    def score(self, x: Tensor, point: InterpolantPoint) -> Tensor:
        """Gradient of log p_t(x), shape (B, d); the law at `point` must have full rank."""
        mean, covariance = self._moments(point)
        return -torch.linalg.solve(covariance, (x.to(mean) - mean).T).T.to(x)

    def latent(self, x: Tensor, point: InterpolantPoint) -> Tensor:
        """E[z|x_t = x], which is minus the latent coefficient times the score."""
        return -float(point.latent) * self.score(x, point)

    def velocity(self, x: Tensor, point: InterpolantPoint) -> Tensor:
        """E[d x_t/dt | x_t = x]; finite for the Brownian latent also at the ends."""
        a, b = float(point.base), float(point.data)
        da, db = float(point.base_rate), float(point.data_rate)
        rate = a * da * self.base.covariance + b * db * self.data.covariance
        rate = rate + da * b * self.cross + a * db * self.cross.T
        rate = rate + float(point.gamma_gamma_rate) * torch.eye(self.base.dimension, dtype=torch.float64)
        mean_rate = (da * self.base.mean + db * self.data.mean).to(x)
        return mean_rate - self.score(x, point) @ rate.to(x).T
