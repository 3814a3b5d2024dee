"""From the options given to those of a run: presets filled in, everything checked before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathline.interpolants import coupling_by_name, unknown_name

from .data import UNREADABLE
from .degradation import degradation_from_config
from .files import read_json
from .objective_checks import check_objective
from .options import AVERAGES, LR_SCHEDULERS, MIXED_PRECISION, TrainOptions, check_types
from .presets import DATA_PRESETS, GENERAL_PRESET, OBJECTIVES, WEIGHTING_SCHEMES


def resolve_options(values: Mapping[str, Any]) -> TrainOptions:
    """Fill what is not given from the presets of data set and objective, and check everything.

    Raises
    ------
    ValueError
        Naming the option, its value and what is allowed.
    """
    given = check_types({k: v for k, v in values.items() if v is not None}, "options")
    options = TrainOptions(**given)
    if options.num_epochs is not None and options.max_train_steps is not None:
        raise ValueError(
            f"num_epochs={options.num_epochs} and max_train_steps={options.max_train_steps} both say how long to "
            "train; give one of them"
        )
    if options.reflow_from is not None:
        _take_data_of(options, given)
    sources = [name for name in ("dataset_name", "train_data_dir", "latents") if getattr(options, name) is not None]
    if not sources:
        options.dataset_name = "digits"
    if "latents" in sources:
        _check_latents(options, sources)
    if options.objective not in OBJECTIVES:
        raise unknown_name("objective", options.objective, OBJECTIVES)
    _apply_scheme(options)
    preset = {**GENERAL_PRESET, **DATA_PRESETS.get(options.dataset_name or "", {}), **OBJECTIVES[options.objective]}
    if options.num_epochs is not None:
        preset.pop("max_train_steps")  # counted once the size of the data set is known
    # A preset of a part belongs to the part it names: another path does not get the parameters of this one.
    for part in ("path", "loss_weight", "time_density"):
        if getattr(options, part) not in (None, preset[part]):
            preset.pop(f"{part}_config", None)
    for name, value in preset.items():
        if getattr(options, name) is None or (name.endswith("_config") and not getattr(options, name)):
            setattr(options, name, value)
    if options.loss_weight == "edm":
        options.loss_weight_config = {"sigma_data": options.sigma_data, **options.loss_weight_config}
    _check_ranges(options)
    if options.objective == "schroedinger":
        _take_entropic_plan(options, given)
    check_objective(options)
    if options.objective == "bridge":
        options.image_start = True
    if options.reflow_from is not None:
        for name, allowed in (("coupling", "independent"), ("random_flip", False)):
            if getattr(options, name) != allowed:
                raise ValueError(f"{name}={getattr(options, name)!r} does not go with reflow_from: its pairs are fixed")
    if options.skip_scale is not None and options.skip_scaling is None:
        options.skip_scaling = "constant"
    _check_buckets(options)
    _check_image_condition(options)
    _check_vectors(options)
    coupling_by_name(options.coupling, **options.coupling_config)
    if options.coupling_config.get("each_data") is False:
        raise ValueError(
            "coupling_config has each_data=False, but training needs one noise for each image: leave it out"
        )
    if options.coupling == "independent" and options.coupling_batch is not None:
        raise ValueError(f"coupling_batch={options.coupling_batch} needs a coupling other than 'independent'")
    return options


def _take_entropic_plan(options: TrainOptions, given: Mapping[str, Any]) -> None:
    """Couple by the plan of the Schrödinger bridge, whose regularisation is 2·sigma²."""
    options.path_config = {"sigma": 1.0, **options.path_config}
    if "coupling" not in given:
        options.coupling = "newton"
    sigma = options.path_config["sigma"]
    if options.coupling in ("sinkhorn", "newton") and isinstance(sigma, int | float):
        wanted = 2.0 * sigma**2
        if options.coupling_config.get("regularisation", wanted) != wanted:
            raise ValueError(
                f"coupling_config has regularisation={options.coupling_config['regularisation']!r}, but that of a "
                f"Schrödinger bridge of sigma={sigma!r} is {wanted:g}: leave it out"
            )
        options.coupling_config = {**options.coupling_config, "regularisation": wanted}


def degradation_config(options: TrainOptions) -> dict[str, Any] | None:
    """The image condition as `degradation_from_config` takes it; None without one."""
    if options.image_condition is None:
        return None
    given = {"name": options.image_condition, "start": options.image_start, **options.image_condition_config}
    return {**given, "bridge": True} if options.objective == "bridge" else given


def sees_more(options: TrainOptions) -> bool:
    """Whether the network sees an image or a vector beside the state."""
    return options.image_condition is not None or options.vector_conditional


def _check_vectors(options: TrainOptions) -> None:
    if not options.vector_conditional:
        return
    for name in ("image_condition", "reflow_from", "label_noise", "reference_data"):
        if getattr(options, name) is not None:
            raise ValueError(f"{name}={getattr(options, name)!r} does not go with vector_conditional")
    if options.coupling == "c2ot" and not {"ratio", "weight"} & options.coupling_config.keys():
        options.coupling_config = {**options.coupling_config, "ratio": C2OT_RATIO}


C2OT_RATIO = 0.01
"""Share of cheaper pairs that the weight of C²OT is searched for under continuous conditions, as published."""


_WHOLE_IMAGES = ("center_crop", "image_condition", "latents", "label_noise", "reference_data", "coupling_batch")
"""Options that ask for images of one size."""


def _check_buckets(options: TrainOptions) -> None:
    if not options.buckets:
        return
    if options.train_data_dir is None or options.dataset_name is not None:
        raise ValueError("buckets are for a folder of images of several sizes: give train_data_dir alone")
    if options.resolution is None or options.resolution % options.bucket_multiple:
        raise ValueError(
            f"buckets need a resolution that is a multiple of bucket_multiple={options.bucket_multiple}, got "
            f"{options.resolution!r}"
        )
    if options.network != "unet":
        raise ValueError(f"network={options.network!r} takes square images; buckets need 'unet'")
    for name in _WHOLE_IMAGES:
        if getattr(options, name):
            raise ValueError(f"{name}={getattr(options, name)!r} does not go with buckets")


def _check_image_condition(options: TrainOptions) -> None:
    config = degradation_config(options)
    if config is None:
        if options.image_start or options.image_condition_config:
            raise ValueError("image_start and image_condition_config need image_condition")
        return
    degradation_from_config(config)
    if options.reflow_from is not None:
        raise ValueError("image_condition does not go with reflow_from: pairs are drawn without images")
    if options.coupling != "independent":
        raise ValueError(
            f"coupling={options.coupling!r} does not go with image_condition: noise that is coupled to images tells of "
            "what the network sees of them, and in sampling it does not"
        )
    if options.image_start:
        _check_image_start(options)


def _check_image_start(options: TrainOptions) -> None:
    if options.objective == "interpolant" and str(options.path).startswith("one_sided"):
        raise ValueError(
            f"image_start needs a two-sided path, got {options.path!r}, whose base is noise; allowed: linear, "
            "trigonometric, encoder_decoder"
        )
    gaussian = options.objective not in ("interpolant", "bridge")
    if gaussian and (options.path, options.prediction) != ("linear", "velocity"):
        raise ValueError(
            f"image_start needs path 'linear' and prediction 'velocity', got {options.path!r} and "
            f"{options.prediction!r}: others take the start for a standard normal"
        )


_LATENTS = ("latents", "latent_scale", "latent_shift")


def _check_latents(options: TrainOptions, sources: list[str]) -> None:
    if len(sources) > 1:
        raise ValueError(f"latents are a data set of their own; leave out {', '.join(sources[:-1])}")
    for name in ("random_flip", "center_crop", "resolution", "image_condition"):
        if getattr(options, name):
            raise ValueError(f"{name} is for images and does not go with latents")


DATA_OPTIONS = ("dataset_name", "train_data_dir", "resolution", "center_crop", "split", *_LATENTS)
"""Options that say what is learned of, and in which size."""


def other_data(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """In words, the data options of `wanted` that are not those of a run before; both by name."""
    defaults = TrainOptions().to_dict()
    pairs = [(name, before.get(name, defaults[name]), wanted[name]) for name in DATA_OPTIONS if name in wanted]
    return [
        f"{name} {new!r} in place of {old!r}"
        for name, old, new in pairs
        if _as_place(name, old) != _as_place(name, new)
    ]


def _as_place(name: str, value: Any) -> Any:
    return Path(value).resolve() if name in ("train_data_dir", "latents") and value is not None else value


def _take_data_of(options: TrainOptions, given: Mapping[str, Any]) -> None:
    """Let a run on samples of another name the data of that one, which it shares."""
    place = Path(str(options.reflow_from)) / "pathline.json"
    if not place.is_file():
        return
    before = read_json(place)["training"]["options"]
    if different := other_data(before, given):
        raise ValueError(
            f"reflow_from {options.reflow_from} was trained on other data than asked for: {'; '.join(different)}; "
            "leave these options out, samples of that model are all that is learned of"
        )
    for name in DATA_OPTIONS:
        setattr(options, name, before.get(name, getattr(options, name)))


def _apply_scheme(options: TrainOptions) -> None:
    """Translate diffusers' weighting_scheme, which names a density or a weight, and the parameters of both."""
    scheme = options.weighting_scheme
    if scheme is not None:
        if scheme not in WEIGHTING_SCHEMES:
            raise unknown_name("weighting_scheme", scheme, WEIGHTING_SCHEMES)
        for name, value in WEIGHTING_SCHEMES[scheme].items():
            if getattr(options, name) not in (None, value):
                raise ValueError(f"weighting_scheme {scheme!r} means {name} {value!r}, got {getattr(options, name)!r}")
            setattr(options, name, value)
    owners = {
        "logit_mean": ("logit_normal", "mean"),
        "logit_std": ("logit_normal", "std"),
        "mode_scale": ("mode", "scale"),
    }
    for name, (density, key) in owners.items():
        value = getattr(options, name)
        if value is None:
            continue
        if options.time_density != density:
            raise ValueError(f"{name} belongs to time_density {density!r}, got time_density {options.time_density!r}")
        options.time_density_config = {**options.time_density_config, key: value}


def _check_ranges(options: TrainOptions) -> None:
    counts = ("train_batch_size", "gradient_accumulation_steps", "checkpointing_steps", "logging_steps")
    for name in (*counts, "preview_nfe", "reflow_pairs", "reflow_nfe"):
        _require(getattr(options, name) >= 1, options, name, "at least 1")
    for name in (
        "max_train_steps",
        "num_epochs",
        "checkpoints_total_limit",
        "resolution",
        "coupling_batch",
        "ema_snapshot_steps",
        "guide_steps",
        "bucket_multiple",
    ):
        value = getattr(options, name)
        _require(value is None or value >= 1, options, name, "at least 1")
    for name in ("lr_warmup_steps", "preview_steps", "preview_images", "dataloader_num_workers"):
        _require(getattr(options, name) >= 0, options, name, "at least 0")
    for name in ("adam_weight_decay", "direction_weight"):
        _require(0 <= getattr(options, name) < float("inf"), options, name, "a finite number of at least 0")
    for name in ("learning_rate", "latent_scale", "adam_epsilon", "max_grad_norm", "sigma_data"):
        _require(0 < getattr(options, name) < float("inf"), options, name, "a finite number above 0")
    for name in ("adam_beta1", "adam_beta2", "class_dropout"):
        _require(0 <= getattr(options, name) < 1, options, name, "in [0, 1)")
    for name, allowed in (
        ("ema", AVERAGES),
        ("unreadable", UNREADABLE),
        ("mixed_precision", MIXED_PRECISION),
        ("lr_scheduler", LR_SCHEDULERS),
        ("split", ("train", "all")),
    ):
        if getattr(options, name) not in allowed:
            raise unknown_name(name, getattr(options, name), allowed)


def parse_numbers(options: TrainOptions, name: str) -> list[float]:
    """Numbers of an option that is a list with commas; ValueError names it."""
    text = str(getattr(options, name))
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{name} must be numbers with commas between them, got {text!r}") from error


def _require(holds: bool, options: TrainOptions, name: str, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {getattr(options, name)!r}")
