"""Particles: compositions of laws sampled by weighting and resampling a batch along any table."""

from .chunks import Chunked
from .composition import Branch, Composition, annealed, guided, law, product
from .corrector import FeynmanKac, HeavyTailWarning
from .discrete import DiscreteFeynmanKac
from .distributed import ProcessRanks
from .energy import EnergyHead, EnergyModel, log_density_of, mixture_energy, weighted_energy
from .genealogy import Genealogy
from .mcmc import Rejuvenation, mala, uhmc, ula
from .particles import Particles, Ranks
from .population import Checkpoint, ExtinctionError, Policy, Population
from .proposals import score_steps, with_noise_factor
from .resampling import SCHEMES, Scheme, resample
from .rewards import CountedReward, Reward
from .run_particles import ParticleResult, Pooled, pooled, smc_sample
from .start_law import start_log_constant, start_log_density, start_states
from .tempering import next_temperature
from .weights import (
    SIZES,
    conditional_effective_size,
    effective_size,
    inverse_largest,
    log_mean_exp,
    normalised,
    perplexity,
)

__all__ = [
    "SCHEMES",
    "SIZES",
    "Branch",
    "Checkpoint",
    "Chunked",
    "Composition",
    "CountedReward",
    "DiscreteFeynmanKac",
    "EnergyHead",
    "EnergyModel",
    "ExtinctionError",
    "FeynmanKac",
    "Genealogy",
    "HeavyTailWarning",
    "ParticleResult",
    "Particles",
    "Policy",
    "Pooled",
    "Population",
    "ProcessRanks",
    "Ranks",
    "Rejuvenation",
    "Reward",
    "Scheme",
    "annealed",
    "conditional_effective_size",
    "effective_size",
    "guided",
    "inverse_largest",
    "law",
    "log_density_of",
    "log_mean_exp",
    "mala",
    "mixture_energy",
    "next_temperature",
    "normalised",
    "perplexity",
    "pooled",
    "product",
    "resample",
    "score_steps",
    "smc_sample",
    "start_log_constant",
    "start_log_density",
    "start_states",
    "uhmc",
    "ula",
    "weighted_energy",
    "with_noise_factor",
]
