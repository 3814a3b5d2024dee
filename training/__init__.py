"""How the network is fitted: losses, weights, time densities, data, networks, the training loop, the result."""

from .batches import BatchPlan, KeyedDraws
from .conventions import choose_convention, stock_scheduler, wrap_network
from .data import ArraySet, Batch, FileSet, ImageSet, fetch_batches, load_data, split_indices
from .densities import (
    CosMap,
    LogitNormal,
    LogNormalSigma,
    Mode,
    Shifted,
    TimeDensity,
    UniformLogSNR,
    UniformTime,
    shift_time,
)
from .ema import WeightAverage
from .export import LoadedPipeline, export_pipeline, load_pipeline
from .losses import (
    GaussianObjective,
    objective_from_config,
    per_sample_loss,
    regression_target,
    squared_error,
)
from .networks import LabelledNetwork, build_network, default_config
from .options import TrainOptions, read_config, resolve_options
from .outcome import NonFiniteLossError, TrainingInterruptedError, TrainResult
from .previews import save_preview
from .trainer import train_model
from .weights import (
    P2,
    CosMapWeight,
    Debiased,
    EDMWeight,
    ELBOWeight,
    InverseNoise,
    LossWeight,
    MinSNR,
    SigmoidWeight,
    UnitWeight,
    Unweighted,
    error_factor,
)

__all__ = [
    "P2",
    "ArraySet",
    "Batch",
    "BatchPlan",
    "CosMap",
    "CosMapWeight",
    "Debiased",
    "EDMWeight",
    "ELBOWeight",
    "FileSet",
    "GaussianObjective",
    "ImageSet",
    "InverseNoise",
    "KeyedDraws",
    "LabelledNetwork",
    "LoadedPipeline",
    "LogNormalSigma",
    "LogitNormal",
    "LossWeight",
    "MinSNR",
    "Mode",
    "NonFiniteLossError",
    "Shifted",
    "SigmoidWeight",
    "TimeDensity",
    "TrainOptions",
    "TrainResult",
    "TrainingInterruptedError",
    "UniformLogSNR",
    "UniformTime",
    "UnitWeight",
    "Unweighted",
    "WeightAverage",
    "build_network",
    "choose_convention",
    "default_config",
    "error_factor",
    "export_pipeline",
    "fetch_batches",
    "load_data",
    "load_pipeline",
    "objective_from_config",
    "per_sample_loss",
    "read_config",
    "regression_target",
    "resolve_options",
    "save_preview",
    "shift_time",
    "split_indices",
    "squared_error",
    "stock_scheduler",
    "train_model",
    "wrap_network",
]
