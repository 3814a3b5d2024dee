"""Gaussian mixtures: isotropic, diagonal, or low rank plus isotropic."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .components import ComponentTarget, squared_distances

_ORTHONORMAL = 1e-6
_BLOCK_ENTRIES = 2**22


class GaussianMixture(ComponentTarget):
    """Data ~ sum_k w_k N(mean_k, covariance_k).

    Parameters
    ----------
    weights : array, shape (K,)
    means : array, shape (K, ...)
        The trailing axes are the shape of one sample, with d entries.
    std : float or array of shape (K,), optional
        Isotropic standard deviation of each component, above 0.
    variances : array, shape (K, d) or as `means`, optional
        Diagonal covariances instead of `std`, above 0.
    basis, spectrum : arrays of shapes (K, d, r) and (K, r), optional
        Adds basis diag(spectrum) basis^T to the isotropic covariance std^2 I; the columns of each basis are
        orthonormal and the spectrum is not negative. Evaluation costs O(K d r), no d x d matrix is formed.
    classes : array of int, shape (K,), optional
        Class of each component, for class-conditional prediction.
    """

    def __init__(
        self,
        weights: Any,
        means: Any,
        std: Any = None,
        *,
        variances: Any = None,
        basis: Any = None,
        spectrum: Any = None,
        classes: Any = None,
    ) -> None:
        super().__init__(weights, means, classes)
        if (std is None) == (variances is None):
            raise ValueError("GaussianMixture needs exactly one of std and variances")
        if (basis is None) != (spectrum is None) or (basis is not None and variances is not None):
            raise ValueError("basis and spectrum are given together, and only with std")
        self._variances: Tensor | None = None
        self._isotropic: Tensor | None = None
        self._basis: Tensor | None = None
        self._spectrum: Tensor | None = None
        if variances is not None:
            self._variances = self._positive("variances", variances, (self.components, self.dimension))
        else:
            self._isotropic = self._positive("std", std, (self.components,)).square()
        if basis is not None:
            self._set_low_rank(basis, spectrum)

    def _positive(self, name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        values = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        if values.ndim == 0:
            values = values.expand(shape)
        if values.ndim > len(shape):
            values = values.reshape(values.shape[0], -1)
        if tuple(values.shape) != shape:
            raise ValueError(f"{name} must have shape {shape} or be one number, got {tuple(values.shape)}")
        if not bool((values > 0).all()):
            raise ValueError(f"{name} must be above 0; for point masses use FiniteDataset")
        return values.clone()

    def _set_low_rank(self, basis: Any, spectrum: Any) -> None:
        columns = torch.as_tensor(basis, dtype=torch.float64).detach().cpu()
        levels = torch.as_tensor(spectrum, dtype=torch.float64).detach().cpu()
        expected = (self.components, self.dimension)
        if columns.ndim != 3 or tuple(columns.shape[:2]) != expected:
            raise ValueError(f"basis must have shape ({expected[0]}, {expected[1]}, r), got {tuple(columns.shape)}")
        if tuple(levels.shape) != (columns.shape[0], columns.shape[2]) or not bool((levels >= 0).all()):
            raise ValueError(f"spectrum must have shape ({columns.shape[0]}, {columns.shape[2]}) and no negative entry")
        overlap = columns.transpose(1, 2) @ columns
        if not bool(((overlap - torch.eye(columns.shape[2], dtype=torch.float64)).abs() < _ORTHONORMAL).all()):
            raise ValueError("the columns of each basis must be orthonormal (for instance from torch.linalg.qr)")
        self._basis, self._spectrum = columns, levels
        # One (d, K r) matrix projects a state on all bases at once.
        self._directions = columns.permute(1, 0, 2).reshape(self.dimension, -1).contiguous()
        self._projected_centres = torch.einsum("kd,kdr->kr", self._centres, columns)

    @property
    def covariance(self) -> Tensor:
        """Covariance of the data, shape (d, d)."""
        total = self._between_covariance()
        if self._variances is not None:
            return total + torch.diag(self.weights @ self._variances)
        assert self._isotropic is not None
        total = total + (self.weights @ self._isotropic) * torch.eye(self.dimension, dtype=torch.float64)
        if self._basis is not None and self._spectrum is not None:
            scaled = self._basis * (self.weights[:, None] * self._spectrum)[:, None]
            total = total + torch.einsum("kdr,ker->de", scaled, self._basis)
        return total

    def _draw(self, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
        z = torch.randn(len(chosen), self.dimension, generator=generator, dtype=torch.float64)
        centres = self._centres[chosen]
        if self._variances is not None:
            return centres + self._variances.sqrt()[chosen] * z
        assert self._isotropic is not None
        flat = centres + self._isotropic.sqrt()[chosen, None] * z
        if self._basis is not None and self._spectrum is not None:
            latent = torch.randn(len(chosen), self._spectrum.shape[1], generator=generator, dtype=torch.float64)
            latent = latent * self._spectrum.sqrt()[chosen]
            for index in chosen.unique().tolist():
                rows = chosen == index
                flat[rows] += latent[rows] @ self._basis[index].T
        return flat

    def _moments(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> tuple[Tensor, Tensor]:
        log_prior = self._log_prior(x, labels)
        if self._variances is not None:
            return self._diagonal_moments(x, signal, noise, log_prior)
        if self._basis is not None:
            return self._low_rank_moments(x, signal, noise, log_prior)
        return self._isotropic_moments(x, signal, noise, log_prior)

    def _log_density(self, x: Tensor, signal: Tensor, noise: Tensor, labels: Any) -> Tensor:
        log_prior = self._log_prior(x, labels)
        if self._variances is not None:
            logits = torch.cat([block[0] for block in self._diagonal_blocks(x, signal, noise, log_prior)])
        elif self._basis is not None:
            logits = self._low_rank_logits(x, signal, noise, log_prior)[0]
        else:
            logits = self._isotropic_logits(x, signal, noise, log_prior)[0]
        return logits.logsumexp(1) - 0.5 * self.dimension * math.log(2 * math.pi)

    def _isotropic_logits(self, x: Tensor, signal: Tensor, noise: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        """Log joint density of state and component (B, K), up to a constant, and the state's variances."""
        total = signal.square() * self._parameter("_isotropic", x) + noise.square()
        distances = squared_distances(x, self._parameter("_centres", x), signal)
        return log_prior - 0.5 * (distances / total + self.dimension * total.log()), total

    def _isotropic_moments(self, x: Tensor, signal: Tensor, noise: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        centres = self._parameter("_centres", x)
        logits, total = self._isotropic_logits(x, signal, noise, log_prior)
        share = logits.softmax(1)
        precise = share / total
        pull = signal * (precise * self._parameter("_isotropic", x)).sum(1, keepdim=True)
        # 1 - signal^2 std^2 / total = noise^2 / total, written without the difference.
        data = (precise * noise.square()) @ centres + pull * x
        return data, precise.sum(1, keepdim=True) * x - signal * (precise @ centres)

    def _low_rank_logits(
        self, x: Tensor, signal: Tensor, noise: Tensor, log_prior: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (B, K), projections (B, K, r), isotropic variances (B, K), and those along the basis."""
        outer = signal.square() * self._parameter("_isotropic", x) + noise.square()
        spectrum = self._parameter("_spectrum", x)
        inner = outer[..., None] + signal.square()[..., None] * spectrum
        rank = spectrum.shape[1]
        projected = (x @ self._parameter("_directions", x)).reshape(-1, self.components, rank)
        projected = projected - signal[..., None] * self._parameter("_projected_centres", x)
        distances = squared_distances(x, self._parameter("_centres", x), signal)
        residual = (distances - projected.square().sum(2)).clamp(min=0)
        exponent = residual / outer + (projected.square() / inner).sum(2)
        log_volume = inner.log().sum(2) + (self.dimension - rank) * outer.log()
        return log_prior - 0.5 * (exponent + log_volume), projected, outer, inner

    def _low_rank_moments(self, x: Tensor, signal: Tensor, noise: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        centres, spectrum = self._parameter("_centres", x), self._parameter("_spectrum", x)
        directions = self._parameter("_directions", x)
        logits, projected, outer, inner = self._low_rank_logits(x, signal, noise, log_prior)
        precise = logits.softmax(1) / outer
        pull = signal * (precise * self._parameter("_isotropic", x)).sum(1, keepdim=True)
        # precise * spectrum / inner * projected: what the basis adds, for the data times signal * noise^2 and
        # for the score times -signal^2.
        along = (precise[..., None] * spectrum / inner * projected).reshape(x.shape[0], -1) @ directions.T
        data = (precise * noise.square()) @ centres + pull * x + signal * noise.square() * along
        white = precise.sum(1, keepdim=True) * x - signal * (precise @ centres) - signal.square() * along
        return data, white

    def _diagonal_blocks(
        self, x: Tensor, signal: Tensor, noise: Tensor, log_prior: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Rows in blocks small enough for a (rows, K, d) tensor.

        Each block gives the logits, the differences to the centres, the total variances, and the signal.
        """
        rows = max(1, _BLOCK_ENTRIES // (self.components * self.dimension))
        centres, variances = self._parameter("_centres", x), self._parameter("_variances", x)
        parts = (part.expand(x.shape[0], -1).split(rows) for part in (x, signal, noise, log_prior))
        for state, level, spread, weights in zip(*parts, strict=True):
            centred = state[:, None] - level[..., None] * centres
            total = level.square()[..., None] * variances + spread.square()[..., None]
            yield weights - 0.5 * (centred.square() / total + total.log()).sum(2), centred, total, level

    def _diagonal_moments(self, x: Tensor, signal: Tensor, noise: Tensor, log_prior: Tensor) -> tuple[Tensor, Tensor]:
        variances, centres = self._parameter("_variances", x), self._parameter("_centres", x)
        data, white = [], []
        for logits, centred, total, level in self._diagonal_blocks(x, signal, noise, log_prior):
            share = logits.softmax(1)
            weighted = share[..., None] * centred / total
            white.append(weighted.sum(1))
            data.append(share @ centres + level * (weighted * variances).sum(1))
        return torch.cat(data), torch.cat(white)
