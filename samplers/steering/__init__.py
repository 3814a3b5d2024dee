"""Steering and search: samples that a reward of the predicted data chooses, through the hooks of the one run loop."""

from .data_reward import DataReward, through_decoder
from .flow_noise import DIFFUSIONS, as_diffusion, diffusion_epsilon, noisy_flow_table, rounded_grid
from .moments import Checkpoints, DataHook
from .rollover import Chain, Child, RolloverResult, first_quota, rollover_budget_forcing
from .run_steered import SteeredResult, steered_sample
from .search_paths import search_table
from .selection import Selection, best_of_n_divergence
from .steered_particles import POTENTIALS, Steering
from .twisted_particles import Twisted, das_temperatures

__all__ = [
    "DIFFUSIONS",
    "POTENTIALS",
    "Chain",
    "Checkpoints",
    "Child",
    "DataHook",
    "DataReward",
    "RolloverResult",
    "Selection",
    "SteeredResult",
    "Steering",
    "Twisted",
    "as_diffusion",
    "best_of_n_divergence",
    "das_temperatures",
    "diffusion_epsilon",
    "first_quota",
    "noisy_flow_table",
    "rollover_budget_forcing",
    "rounded_grid",
    "search_table",
    "steered_sample",
    "through_decoder",
]
