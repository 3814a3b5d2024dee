"""What mixtures and finite data sets share: weights, class labels, responsibilities."""

from typing import Any

import torch
from torch import Tensor

from .targets import Target
from .tensors import holds

ANY_CLASS = -1


def squared_distances(x: Tensor, centres: Tensor, signal: Tensor) -> Tensor:
    """|x - signal * centre|^2 for x (B, d), centres (K, d), signal (B, 1) or (1, 1); shape (B, K).

    The differences are formed before squaring (an expansion into |x|^2 - 2 x.c + |c|^2 loses all digits at low
    noise) and without a (B, K, d) tensor, which is why the state is divided by the signal first. A signal of 0
    is replaced by one too small to matter.
    """
    scale = signal.clamp(min=torch.finfo(x.dtype).tiny ** 0.25)
    distances = torch.cdist(x / scale, centres, compute_mode="donot_use_mm_for_euclid_dist")
    return (scale * distances).square()


class ComponentTarget(Target):
    """A target of K weighted components, each with an optional class.

    Parameters
    ----------
    weights : array, shape (K,)
        Not negative, some positive; they are divided by their sum.
    centres : array, shape (K, *shape)
        Mean of each component; the trailing axes are the shape of one sample.
    classes : array of int, shape (K,), optional
        Class of each component, not negative.
    """

    def __init__(self, weights: Any, centres: Any, classes: Any = None) -> None:
        points = torch.as_tensor(centres, dtype=torch.float64).detach().cpu()
        if points.ndim < 2 or points.shape[0] < 1:
            raise ValueError(f"the centres must have shape (K, ...) with K >= 1, got {tuple(points.shape)}")
        super().__init__(tuple(points.shape[1:]))
        self._centres = points.reshape(points.shape[0], -1)
        mass = torch.as_tensor(weights, dtype=torch.float64).detach().cpu()
        if tuple(mass.shape) != (self.components,):
            raise ValueError(f"weights must have shape ({self.components},), got {tuple(mass.shape)}")
        if not (bool((mass >= 0).all()) and 0 < mass.sum().item() < float("inf")):
            raise ValueError("weights must not be negative, and their sum must be positive and finite")
        self.weights = mass / mass.sum()
        self._log_weights = self.weights.log()
        self.classes: Tensor | None = None
        if classes is not None:
            self.classes = torch.as_tensor(classes).detach().cpu().long()
            if tuple(self.classes.shape) != (self.components,) or bool((self.classes < 0).any()):
                raise ValueError(f"classes must be {self.components} integers, none negative")

    @property
    def components(self) -> int:
        """Number K of components."""
        return self._centres.shape[0]

    @property
    def mean(self) -> Tensor:
        """Mean of the data, shape (d,)."""
        return self.weights @ self._centres

    def _between_covariance(self) -> Tensor:
        centred = self._centres - self.mean
        return (centred.T * self.weights) @ centred

    def _labels(self, labels: Any, batch: int) -> Tensor:
        if self.classes is None:
            raise ValueError("labels were given, but this target has no classes; build it with classes")
        given = torch.as_tensor(labels)
        if given.is_floating_point() or given.ndim > 1 or given.numel() not in (1, batch):
            raise ValueError(f"labels must be an integer or {batch} integers, got {given.dtype} {tuple(given.shape)}")
        given = given.reshape(-1).long().expand(batch)
        known = (given[:, None] == self.classes.to(given.device)).any(1) | (given == ANY_CLASS)
        if not holds(known):
            wrong = given[~known][0].item()
            valid = self.classes.unique().tolist()
            raise ValueError(f"label {wrong} is not a class of this target; classes are {valid}, or -1 for all")
        return given

    def _log_prior(self, x: Tensor, labels: Any) -> Tensor:
        """Log weights (B, K) or (1, K), with minus infinity outside the class of each sample."""
        log_weights = self._parameter("_log_weights", x)[None]
        if labels is None:
            return log_weights
        given = self._labels(labels, x.shape[0]).to(x.device)
        assert self.classes is not None
        outside = (given[:, None] != self.classes.to(x.device)) & (given[:, None] != ANY_CLASS)
        kept = log_weights.expand(x.shape[0], -1).masked_fill(outside, float("-inf"))
        return kept - kept.logsumexp(1, keepdim=True)

    def _choose(self, n: int, generator: torch.Generator | None, labels: Any) -> Tensor:
        """Draw the component of each of `n` samples."""
        if labels is None:
            return torch.multinomial(self.weights, n, replacement=True, generator=generator)
        like = torch.empty(n, 0, dtype=torch.float64)
        return torch.multinomial(self._log_prior(like, labels).exp(), 1, generator=generator)[:, 0]

    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        labels: Any = None,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Draw `n` samples, shape (n, *shape), of the given classes (None: of the whole law)."""
        chosen = self._choose(n, generator, labels)
        return self._draw(chosen, generator).to(dtype).reshape(n, *self.shape)

    def sample_with_labels(
        self, n: int, generator: torch.Generator | None = None, *, dtype: torch.dtype = torch.float64
    ) -> tuple[Tensor, Tensor]:
        """Draw `n` samples and the class of each, shape (n,)."""
        if self.classes is None:
            raise ValueError("this target has no classes; build it with classes, or use sample")
        chosen = self._choose(n, generator, None)
        return self._draw(chosen, generator).to(dtype).reshape(n, *self.shape), self.classes[chosen]

    def _draw(self, chosen: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw one flat float64 sample of each chosen component."""
        return self._centres[chosen]
