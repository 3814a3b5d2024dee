"""Likelihood: densities of data, of samples and of single random moves."""

from .bits import ImportanceWeights, bits_per_dimension, dequantised, importance_weights
from .densities import LogDensity, log_density, log_prior, map_density, sample_with_density
from .divergence import Divergence
from .step_log_probs import StepLogProbs, trajectory_log_probs

__all__ = [
    "Divergence",
    "ImportanceWeights",
    "LogDensity",
    "StepLogProbs",
    "bits_per_dimension",
    "dequantised",
    "importance_weights",
    "log_density",
    "log_prior",
    "map_density",
    "sample_with_density",
    "trajectory_log_probs",
]
