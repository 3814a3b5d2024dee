"""Class-conditional training on labels of which a known share is wrong.

With T[i, j] = p(label j is seen | the class is i), the denoiser of a seen label is a convex combination of those of
the classes, E[data | x, j] = sum_i p(i | x, j) E[data | x, i]. So the combination is regressed onto the data, and each
term learns its class (Na et al. 2024, "Label-noise robust diffusion models", TDSM). The weights come from a
classifier of noised data, trained through T: p(i | x, j) is proportional to T[i, j] p(i | x). (The paper multiplies by
a matrix made from T and then by its inverse; both cancel, so nothing is inverted here, and the weights lie in [0, 1]
and add up to 1 by themselves.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pathline.interpolants.tensors import match

from .losses import GaussianObjective, Model


def symmetric_noise(classes: int, rate: float) -> Tensor:
    """Transition matrix that keeps a label with probability 1 - rate, else takes any other one; float64.

    Raises
    ------
    ValueError
        If there are fewer than 2 classes, or the rate is not in [0, 1).
    """
    _check_rate(classes, rate)
    return torch.full((classes, classes), rate / (classes - 1), dtype=torch.float64).fill_diagonal_(1 - rate)


def flip_noise(classes: int, flips: Mapping[int, int], rate: float) -> Tensor:
    """Transition matrix that turns each class named in `flips` into its partner with probability `rate`; float64.

    Raises
    ------
    ValueError
        If a class is unknown, or a number is out of range.
    """
    _check_rate(classes, rate)
    transition = torch.eye(classes, dtype=torch.float64)
    for origin, partner in flips.items():
        if not (0 <= origin < classes and 0 <= partner < classes and origin != partner):
            raise ValueError(f"flip {origin} -> {partner} must join two different classes of 0 ... {classes - 1}")
        transition[origin, origin], transition[origin, partner] = 1 - rate, rate
    return transition


def corrupt_labels(labels: Tensor, transition: Tensor, uniforms: Tensor) -> Tensor:
    """Labels as they would be seen, (N,), drawn from rows of the transition matrix with uniforms in (0, 1), (N,)."""
    check_transition(transition)
    below = transition.to(torch.float64).cumsum(1)[labels].contiguous()
    seen = torch.searchsorted(below, uniforms.to(torch.float64)[:, None])[:, 0]
    return seen.clamp(max=len(transition) - 1)


def check_transition(transition: Tensor) -> None:
    """Refuse what is not a transition matrix.

    Raises
    ------
    ValueError
        Unless it is square, has no negative entry, and its rows add up to 1.
    """
    square = transition.ndim == 2 and transition.shape[0] == transition.shape[1]
    if not square or bool((transition < 0).any()) or not bool(((transition.sum(1) - 1).abs() < 1e-6).all()):
        raise ValueError(
            "a transition matrix must be square with rows of probabilities that add up to 1, got shape "
            f"{tuple(transition.shape)} with row sums {transition.sum(-1).tolist()}"
        )


def transition_loss(logits: Tensor, seen: Tensor, transition: Tensor) -> Tensor:
    """Cross-entropy of seen labels under p(j | x) = sum_i T[i, j] p(i | x), of shape (B,).

    Trains a classifier with logits (B, K) of the true classes on labels (B,) as they are seen. The classifier takes
    noised data and their times.
    """
    log_class = logits.log_softmax(1)
    return -torch.logsumexp(log_class + transition.to(logits)[:, seen].T.log(), 1)


def class_posterior(logits: Tensor, seen: Tensor, transition: Tensor) -> Tensor:
    """p(class | x, seen label), of shape (B, K), from a classifier's logits (B, K) of the true class given x."""
    return (logits.log_softmax(1) + transition.to(logits)[:, seen].T.log()).softmax(1)


@dataclass(frozen=True, eq=False)
class NoisyLabelObjective:
    """The loss of a Gaussian objective for labels seen through a transition matrix (TDSM).

    Parameters
    ----------
    objective : GaussianObjective
        Of any prediction: all are linear in the data, so the combination holds for each.
    transition : Tensor, shape (K, K)
        T[i, j], the probability of seeing j where the class is i.
    threshold : float in [0, 1)
        Classes below this weight are left out, and the rest is rescaled to 1; saves calls. As in the official code.
    full_gradient : bool
        Let all classes learn from a sample. By default only the seen one does, as in the official code: the optimum is
        the same, at one evaluation with gradients per sample.

    Raises
    ------
    ValueError
        If the matrix is not one of transitions, or the threshold is out of range.
    """

    objective: GaussianObjective
    transition: Tensor
    threshold: float = 0.01
    full_gradient: bool = False

    def __post_init__(self) -> None:
        check_transition(self.transition)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1), got {self.threshold!r}")

    def __call__(
        self,
        model: Model,
        classifier: Model,
        data: Tensor,
        noise: Tensor,
        t: Tensor,
        seen: Tensor,
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Loss of each sample, shape (B,).

        Parameters
        ----------
        model : callable (x, t, class_labels=..., **model_kwargs) -> output
            Called once for the seen labels and once for all other classes that count.
        classifier : callable (x, t) -> logits (B, K) of the true class; no gradient is taken.
        data, noise : Tensor, shape (B, ...)
        t : Tensor, shape (B,)
        seen : int64 Tensor, shape (B,)
        model_kwargs : mapping, optional
            Handed on as they are; entries of one row per sample do not fit and have no place here.

        Raises
        ------
        ValueError
            If shapes do not fit or a label is not a class.
        """
        classes = len(self.transition)
        if seen.shape != t.shape or not bool(((seen >= 0) & (seen < classes)).all()):
            raise ValueError(f"seen must hold one class of 0 ... {classes - 1} per sample, got {seen.tolist()}")
        extra = dict(model_kwargs or {})

        def combined(x: Tensor, label: Tensor) -> Tensor:
            with torch.no_grad():
                weights = self.weights(classifier(x, label), seen)
            output = model(x, label, class_labels=seen, **extra)
            result = match(weights.gather(1, seen[:, None])[:, 0], output) * output
            row, other = self._others(weights, seen)
            if len(row):
                with torch.set_grad_enabled(self.full_gradient and torch.is_grad_enabled()):
                    outputs = model(x[row], label[row], class_labels=other, **extra)
                    terms = match(weights[row, other], outputs) * outputs
                result = result.index_add(0, row, terms.to(result.dtype))
            return result

        return self.objective(combined, data, noise, t)

    def weights(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Weight of each class for each sample, (B, K); rows add up to 1."""
        weights = class_posterior(logits, seen, self.transition)
        own = torch.nn.functional.one_hot(seen, weights.shape[1]).bool()
        kept = torch.where(own | (weights > self.threshold), weights, 0.0)
        return kept / kept.sum(1, keepdim=True).clamp(min=torch.finfo(kept.dtype).tiny)

    def _others(self, weights: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Samples and classes of the terms besides the seen ones."""
        own = torch.nn.functional.one_hot(seen, weights.shape[1]).bool()
        row, other = ((weights > 0) & ~own).nonzero(as_tuple=True)
        return row, other


def _check_rate(classes: int, rate: float) -> None:
    if not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes={classes!r} is not possible; allowed: at least 2")
    if not 0 <= rate < 1:
        raise ValueError(f"rate={rate!r} of wrong labels is not possible; allowed: 0 to below 1")
