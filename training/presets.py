"""Default settings by objective and by data set."""

from __future__ import annotations

from typing import Any

OBJECTIVES: dict[str, dict[str, Any]] = {
    "flow": {
        "path": "linear",
        "prediction": "velocity",
        "loss_weight": "none",
        "time_density": "logit_normal",
        "time_density_config": {"mean": 0.0, "std": 1.0},
    },
    "noise": {"path": "discrete", "prediction": "noise", "loss_weight": "none", "time_density": "uniform"},
    "v": {"path": "discrete", "prediction": "v", "loss_weight": "none", "time_density": "uniform"},
    "data": {
        "path": "discrete",
        "prediction": "data",
        "loss_weight": "min_snr",
        "loss_weight_config": {"gamma": 5.0},
        "time_density": "uniform",
    },
    "edm": {
        "path": "edm",
        "prediction": "data",
        "loss_weight": "edm",
        "time_density": "lognormal_sigma",
        "time_density_config": {"mean": -1.2, "std": 1.2},
    },
    "interpolant": {
        "path": "one_sided_linear",
        "prediction": "velocity",
        "loss_weight": "none",
        "time_density": "uniform",
    },
    "schroedinger": {"path": "brownian", "prediction": "velocity", "loss_weight": "none", "time_density": "uniform"},
    "convex_flow": {"path": "linear", "prediction": "velocity", "loss_weight": "none", "time_density": "uniform"},
    # what the network of a bridge predicts belongs to its path
    "bridge": {"path": "brownian", "loss_weight": "none", "time_density": "uniform"},
}
"""Path, prediction, weight and density of each named objective; each can be changed by itself."""

WEIGHTING_SCHEMES: dict[str, dict[str, str]] = {
    "none": {"loss_weight": "none", "time_density": "uniform"},
    "sigma_sqrt": {"loss_weight": "sigma_sqrt", "time_density": "uniform"},
    "cosmap": {"loss_weight": "cosmap", "time_density": "uniform"},
    "logit_normal": {"loss_weight": "none", "time_density": "logit_normal"},
    "mode": {"loss_weight": "none", "time_density": "mode"},
}
"""What the `weighting_scheme` of diffusers' flow scripts means as a weight and a density."""

GENERAL_PRESET: dict[str, Any] = {
    "train_batch_size": 64,
    "max_train_steps": 10_000,
    "learning_rate": 3e-4,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 500,
}
"""Optimiser settings of data sets without a preset of their own."""

DATA_PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "train_batch_size": 64,
        "max_train_steps": 1300,
        "learning_rate": 3e-3,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 50,
    },
    "fashion-mnist": {
        "train_batch_size": 128,
        "max_train_steps": 20_000,
        "learning_rate": 5e-4,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 500,
    },
    "cifar10": {
        "train_batch_size": 128,
        "max_train_steps": 100_000,
        "learning_rate": 2e-4,
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 2000,
    },
}
"""Optimiser settings by data set. The digits preset takes under two minutes on two CPU cores."""
