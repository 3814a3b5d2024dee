"""How the network is fitted: losses, weights, time densities, data, networks, the training loop, the result."""

from .adaptive_density import AdaptiveSchedule, LevelHistogram
from .batches import BatchPlan, KeyedDraws
from .biased_data import BiasedDataObjective, Tilted, discrimination_loss, log_ratio, tilt
from .bridge_levels import BridgeLevels, bbdm_levels, i2sb_levels, resshift_levels
from .bridge_losses import (
    BRIDGE_OBJECTIVES,
    BridgeObjective,
    ConsecutiveBridgeObjective,
    absolute_error,
    bridge_objective,
)
from .bridge_predictions import (
    BridgeCoefficients,
    BridgePreconditioned,
    BridgePrediction,
    DataPrediction,
    Difference,
    Displacement,
    Drift,
    LatentPrediction,
    ScaledDisplacement,
    ScorePrediction,
)
from .bridge_task import BridgeModel, BridgeSettings
from .buckets import BucketPlan, bucket_sizes, nearest_size, padded
from .conventions import choose_convention, stock_scheduler, wrap_network
from .convex_flow import ConvexCost, PowerCost, convex_flow_loss, potential_velocity
from .convex_task import PotentialModel
from .data import ArraySet, Batch, FileSet, ImageSet, fetch_batches, load_data, split_indices
from .degradation import Degradation, degradation_from_config
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
from .elbo_view import ELBOEntry, elbo_entries, elbo_table
from .ema import WeightAverage
from .energy_distillation import energy_distillation_loss
from .export import LoadedPipeline, export_pipeline, load_pipeline
from .interpolant_losses import INTERPOLANT_PREDICTIONS, InterpolantObjective, interpolant_target, linear_error
from .learned_interpolant import LearnedEnds, fit_ends, kinetic_loss
from .losses import (
    GaussianObjective,
    direction_error,
    objective_from_config,
    per_sample_loss,
    regression_target,
    squared_error,
)
from .networks import LabelledNetwork, build_network, default_config
from .noisy_labels import (
    NoisyLabelObjective,
    class_posterior,
    corrupt_labels,
    flip_noise,
    symmetric_noise,
    transition_loss,
)
from .options import TrainOptions, read_config
from .outcome import NonFiniteLossError, TrainingInterruptedError, TrainResult
from .power_averages import PowerAverages, export_average, reconstruct
from .previews import save_preview
from .recipes import Recipe, list_recipes, read_recipe, train_recipe
from .reflow import PairSet, simulate, straightness
from .resolve import resolve_options
from .schroedinger import SchroedingerBridge
from .schroedinger_task import SchroedingerModel
from .separation import SeparationEstimate, estimate_separation
from .training_run import train_model
from .vector_conditions import vector_channels
from .weights import (
    P2,
    CosMapWeight,
    Debiased,
    EDMMonotonic,
    EDMWeight,
    ELBOWeight,
    InverseNoise,
    LatentPower,
    LossWeight,
    MinSNR,
    SigmoidWeight,
    UnitWeight,
    Unweighted,
    error_factor,
)

__all__ = [
    "BRIDGE_OBJECTIVES",
    "INTERPOLANT_PREDICTIONS",
    "P2",
    "AdaptiveSchedule",
    "ArraySet",
    "Batch",
    "BatchPlan",
    "BiasedDataObjective",
    "BridgeCoefficients",
    "BridgeLevels",
    "BridgeModel",
    "BridgeObjective",
    "BridgePreconditioned",
    "BridgePrediction",
    "BridgeSettings",
    "BucketPlan",
    "ConsecutiveBridgeObjective",
    "ConvexCost",
    "CosMap",
    "CosMapWeight",
    "DataPrediction",
    "Debiased",
    "Degradation",
    "Difference",
    "Displacement",
    "Drift",
    "EDMMonotonic",
    "EDMWeight",
    "ELBOEntry",
    "ELBOWeight",
    "FileSet",
    "GaussianObjective",
    "ImageSet",
    "InterpolantObjective",
    "InverseNoise",
    "KeyedDraws",
    "LabelledNetwork",
    "LatentPower",
    "LatentPrediction",
    "LearnedEnds",
    "LevelHistogram",
    "LoadedPipeline",
    "LogNormalSigma",
    "LogitNormal",
    "LossWeight",
    "MinSNR",
    "Mode",
    "NoisyLabelObjective",
    "NonFiniteLossError",
    "PairSet",
    "PotentialModel",
    "PowerAverages",
    "PowerCost",
    "Recipe",
    "ScaledDisplacement",
    "SchroedingerBridge",
    "SchroedingerModel",
    "ScorePrediction",
    "SeparationEstimate",
    "Shifted",
    "SigmoidWeight",
    "Tilted",
    "TimeDensity",
    "TrainOptions",
    "TrainResult",
    "TrainingInterruptedError",
    "UniformLogSNR",
    "UniformTime",
    "UnitWeight",
    "Unweighted",
    "WeightAverage",
    "absolute_error",
    "bbdm_levels",
    "bridge_objective",
    "bucket_sizes",
    "build_network",
    "choose_convention",
    "class_posterior",
    "convex_flow_loss",
    "corrupt_labels",
    "default_config",
    "degradation_from_config",
    "direction_error",
    "discrimination_loss",
    "elbo_entries",
    "elbo_table",
    "energy_distillation_loss",
    "error_factor",
    "estimate_separation",
    "export_average",
    "export_pipeline",
    "fetch_batches",
    "fit_ends",
    "flip_noise",
    "i2sb_levels",
    "interpolant_target",
    "kinetic_loss",
    "linear_error",
    "list_recipes",
    "load_data",
    "load_pipeline",
    "log_ratio",
    "nearest_size",
    "objective_from_config",
    "padded",
    "per_sample_loss",
    "potential_velocity",
    "read_config",
    "read_recipe",
    "reconstruct",
    "regression_target",
    "resolve_options",
    "resshift_levels",
    "save_preview",
    "shift_time",
    "simulate",
    "split_indices",
    "squared_error",
    "stock_scheduler",
    "straightness",
    "symmetric_noise",
    "tilt",
    "train_model",
    "train_recipe",
    "transition_loss",
    "vector_channels",
    "wrap_network",
]
