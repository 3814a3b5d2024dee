"""From options to the parts of a run: path, objective, network, optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pathline.interpolants import DiscretePath, GaussianPath, check_name, path_by_name, unknown_name

from .adaptive_density import AdaptiveSchedule
from .bridge_task import BridgeSettings, BridgeTask
from .bucket_set import read_buckets
from .conventions import choose_convention
from .convex_flow import PowerCost
from .convex_task import ConvexFlowTask
from .data import ImageSet, load_data
from .degradation import degradation_from_config
from .densities import TimeDensity, UniformTime
from .ema import NetworkAverage, WeightAverage
from .export import load_pipeline
from .interpolant_losses import InterpolantObjective
from .interpolant_task import InterpolantTask, make_interpolant
from .latents import read_latents
from .losses import GaussianObjective
from .networks import build_network, default_config
from .objective_checks import ADAPTIVE, LATENT_POWER, biased
from .options import TrainOptions
from .power_averages import PowerAverages
from .reflow import PairSet
from .resolve import degradation_config, parse_numbers
from .robust_data import JoinedSet, transition_matrix, with_bias, with_wrong_labels
from .robust_tasks import BiasedDataTask, GuideSource, NoisyLabelTask
from .schroedinger_task import SchroedingerTask
from .skip_scaling import install_skip_scaling
from .tasks import GaussianTask, Task
from .vector_conditions import vectors_of
from .weights import LatentPower, LossWeight

_SCHEDULES = {
    "linear": DiscretePath.linear,
    "scaled_linear": DiscretePath.scaled_linear,
    "cosine": DiscretePath.cosine,
}


def make_path(name: str, parameters: Mapping[str, Any]) -> GaussianPath:
    """Make a path by name; "discrete" also takes `schedule` (linear, scaled_linear, cosine) with its parameters.

    Raises
    ------
    ValueError
        If a name, a parameter or a value is not allowed.
    """
    if name != "discrete" or "alphas_cumprod" in parameters:
        return path_by_name(name, **parameters)
    rest = dict(parameters)
    schedule = check_name("schedule of the discrete path", rest.pop("schedule", "linear"), _SCHEDULES)
    try:
        return _SCHEDULES[schedule](**rest)
    except TypeError as error:
        raise ValueError(f"path_config {dict(parameters)} does not suit the schedule {schedule!r}: {error}") from error


def make_task(options: TrainOptions) -> Task:
    """Make the task of resolved options.

    Raises
    ------
    ValueError
        If parts are unknown, do not fit each other, or have a parameter of a wrong type.
    """
    makers = {
        "interpolant": _interpolant_task,
        "bridge": _bridge_task,
        "schroedinger": lambda given: SchroedingerTask(given.path_config["sigma"], _density(given)),
        "convex_flow": lambda given: ConvexFlowTask(PowerCost(given.cost_power), _density(given)),
    }
    try:
        return makers.get(options.objective, _gaussian_task)(options)
    except TypeError as error:  # a text or a list where a number is compared or calculated with
        names = ("path_config", "loss_weight_config", "time_density_config")
        given = ", ".join(f"{name} {getattr(options, name)}" for name in names if getattr(options, name))
        raise ValueError(f"a parameter has a wrong type ({error}) in {given}") from error


def _gaussian_task(options: TrainOptions) -> Task:
    assert options.path is not None
    assert options.prediction is not None
    assert options.loss_weight is not None
    path = make_path(options.path, options.path_config)
    adaptive = options.time_density == ADAPTIVE
    objective = GaussianObjective(
        path=path,
        prediction=options.prediction,
        target=options.loss_target,
        weight=LossWeight.by_name(options.loss_weight, **options.loss_weight_config),
        density=UniformTime() if adaptive else _density(options),
    )
    preconditioned = options.objective == "edm" and objective.prediction == "data" and options.path == "edm"
    convention = choose_convention(path, objective.prediction, preconditioned)
    if options.robust and (options.label_noise is not None or biased(options)):
        origin = GuideSource(options.guide_from, options.guide_steps, options.random_flip)
        given = (objective, convention, options.sigma_data, origin)
        return BiasedDataTask(*given) if options.label_noise is None else NoisyLabelTask(options.label_noise, *given)
    schedule = _adaptive_schedule(options, path) if adaptive else None
    settings = (options.sigma_data, options.direction_weight, schedule, options.image_start)
    return GaussianTask(objective, convention, *settings)


def _adaptive_schedule(options: TrainOptions, path: GaussianPath) -> AdaptiveSchedule:
    known = ("bins", "decay", "explore")
    for key in options.time_density_config:
        check_name("parameter of time_density 'adaptive'", key, known)
    return AdaptiveSchedule(path, **options.time_density_config)


def _interpolant_task(options: TrainOptions) -> Task:
    assert options.path is not None
    assert options.prediction is not None
    objective = InterpolantObjective(
        make_interpolant(options.path, options.path_config),
        options.prediction,
        antithetic=options.antithetic,
        weight=_latent_power(options) or LatentPower(),
        density=_density(options),
    )
    return InterpolantTask(objective)


def _bridge_task(options: TrainOptions) -> Task:
    assert options.path is not None
    settings = BridgeSettings(options.path, options.path_config, options.prediction)
    return BridgeTask(settings, _latent_power(options), _density(options))


def _density(options: TrainOptions) -> TimeDensity:
    assert options.time_density is not None
    return TimeDensity.by_name(options.time_density, **options.time_density_config)


def _latent_power(options: TrainOptions) -> LatentPower | None:
    """The weight of an interpolant or bridge; None where the options leave its own."""
    if options.loss_weight != LATENT_POWER:
        return None
    for key in options.loss_weight_config:
        check_name(f"parameter of loss_weight {LATENT_POWER!r}", key, ("power", "limit"))
    return LatentPower(**options.loss_weight_config)


def make_data(options: TrainOptions) -> ImageSet:
    """The images to learn, or the pairs that take their place; errors as of `load_data` and `PairSet`."""
    if options.reflow_from is not None:
        settings: dict[str, Any] = {"method": options.reflow_method, "nfe": options.reflow_nfe}
        return PairSet(options.reflow_from, options.reflow_pairs, seed=options.seed, **settings)
    if options.latents is not None:
        data: ImageSet = read_latents(options.latents, options.split, options.latent_scale, options.latent_shift)
    elif options.buckets:
        shapes = (options.resolution or 0, options.bucket_multiple, options.bucket_ratio)
        data = read_buckets(str(options.train_data_dir), options.split, *shapes, options.unreadable)
    else:
        data = load_data(
            options.dataset_name, split=options.split, data_dir=options.train_data_dir, **_reading(options)
        )
    return _wrong_data(options, data)


def _reading(options: TrainOptions) -> dict[str, Any]:
    names = ("resolution", "center_crop", "unreadable")
    return {name: getattr(options, name) for name in names}


def _wrong_data(options: TrainOptions, data: ImageSet) -> ImageSet:
    """The data with the errors of the options; checks those that are there by themselves."""
    if options.label_noise is not None:
        if not data.classes:
            raise ValueError(f"label_noise needs labels, and data set {data.name!r} has none")
        matrix = transition_matrix(options.label_noise, len(data.classes))
        return with_wrong_labels(data, matrix, options.seed) if options.corrupt_labels else data
    if options.simulated_bias:
        return with_bias(data, options.simulated_bias, options.seed)
    if options.reference_data is not None:
        reference = load_data(None, split="all", data_dir=options.reference_data, **_reading(options))
        return JoinedSet(reference, data)
    return data


def make_network(options: TrainOptions, data: ImageSet) -> nn.Module:
    """Build the network for the data, with weights that depend on the seed alone.

    Raises
    ------
    ValueError
        If a setting is unknown, or a class-conditional network is asked for on data without labels.
    """
    classes = len(data.classes) if options.class_conditional else None
    if classes == 0:
        raise ValueError(f"class_conditional needs labels, and data set {data.name!r} has none")
    config = default_config(options.network, data.shape, classes)
    restored = degradation_config(options)
    if restored is not None:
        extra = degradation_from_config(restored).extra_channels(data.shape[0])
        config |= {"in_channels": data.shape[0] + extra, "out_channels": data.shape[0]}
    if options.vector_conditional:
        config["in_channels"] += vectors_of(data).shape[1] + 1
    if options.objective == "schroedinger":
        config["out_channels"] = 2 * data.shape[0]
    _check_sizes(options.network_config, config, data)
    config.update(options.network_config)
    halvings = 2 ** (len(config.get("block_out_channels", [0])) - 1)
    if options.buckets and options.bucket_multiple % halvings:
        raise ValueError(
            f"bucket_multiple must be a multiple of {halvings}, by which this network divides sides, got "
            f"{options.bucket_multiple}"
        )
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(options.seed)
        network = build_network(config)
    if options.skip_scaling is not None:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(options.seed)
            install_skip_scaling(network, options.skip_scaling, options.skip_scale)
    if options.init_from is not None:
        _copy_weights(options.init_from, network)
    return network


def _check_sizes(given: Mapping[str, Any], needed: Mapping[str, Any], data: ImageSet) -> None:
    """Refuse settings of the network that do not fit the images."""
    for key in ("in_channels", "out_channels", "sample_size"):
        if key in given and given[key] != needed[key]:
            raise ValueError(
                f"network_config has {key}={given[key]!r}, but images of {data.name} are {tuple(data.shape)} "
                f"(channels, height, width): it must be {needed[key]}, or left out"
            )


def _copy_weights(source: str, network: nn.Module) -> None:
    loaded: Any = load_pipeline(source).network
    ours, theirs = ({name: tuple(p.shape) for name, p in n.state_dict().items()} for n in (network, loaded))
    if ours != theirs:
        odd = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))[:3]
        raise ValueError(f"init_from {source!r} is another network: {', '.join(odd)} differ")
    network.load_state_dict(loaded.state_dict())


def make_optimizer(
    options: TrainOptions, network: nn.Module, uncertainty: nn.Module | None = None
) -> torch.optim.Optimizer:
    """AdamW with the options' settings; all parameters in one fused update."""
    assert options.learning_rate is not None
    return torch.optim.AdamW(
        [*network.parameters(), *(() if uncertainty is None else uncertainty.parameters())],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        weight_decay=options.adam_weight_decay,
        eps=options.adam_epsilon,
        fused=next(network.parameters()).device.type in ("cpu", "cuda"),
    )


def make_average(options: TrainOptions, network: nn.Module) -> NetworkAverage | None:
    """The average of the weights that the options ask for."""
    if not options.use_ema:
        return None
    if options.ema == "power":
        return PowerAverages(network, parse_numbers(options, "ema_stds"))
    return WeightAverage(network, options.ema_max_decay, options.ema_inv_gamma, options.ema_power)


def make_lr_schedule(options: TrainOptions, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate by optimiser step, from diffusers; stepped once per optimiser step on every process."""
    from diffusers.optimization import get_scheduler

    assert options.lr_scheduler is not None
    return get_scheduler(
        options.lr_scheduler,
        optimizer=optimizer,
        num_warmup_steps=options.lr_warmup_steps,
        num_training_steps=options.max_train_steps,
    )


def check_trackers(report_to: str | None) -> list[str]:
    """Split a comma-separated list of trackers and check that each is installed.

    Raises
    ------
    ValueError
        If one is unknown or missing.
    """
    if report_to is None:
        return []
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    available = [str(name) for name in get_available_trackers()]
    wanted = [name.strip() for name in report_to.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise unknown_name("tracker (report_to)", name, known)
        if name not in available:
            raise ValueError(f"tracker {name!r} (report_to) is not installed: pip install {name}")
    return wanted
