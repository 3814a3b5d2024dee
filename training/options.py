"""Options of a training run: their names, types, defaults and help, and files of them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import Field, asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from pathline.interpolants import unknown_name

from .files import read_json

AVERAGES = ("warmup", "power")
MIXED_PRECISION = ("no", "fp16", "bf16")
LR_SCHEDULERS = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")


def _about(group: str, text: str) -> dict[str, str]:
    return {"group": group, "help": text}


def _option(default: Any, group: str, text: str) -> Any:
    """A field with its help text."""
    return field(default=default, metadata=_about(group, text))


@dataclass
class TrainOptions:
    """Options of `pathline train`, under the names that diffusers' training scripts use where they have one.

    An option left at None is filled by `resolve_options` from the preset of the data set and of the objective.
    """

    output_dir: str = _option("out/train", "Output", "Folder of the result: a diffusers pipeline, checkpoints, log.")
    dataset_name: str | None = _option(None, "Data", "digits (default), fashion-mnist, cifar10, or a name on the hub.")
    train_data_dir: str | None = _option(
        None, "Data", "Folder of images (classes = sub-folders), .npz, or files of a set."
    )
    split: str = _option("train", "Data", "train, or all: also what a set holds out for testing.")
    resolution: int | None = _option(None, "Data", "Side in pixels; default that of the images.")
    buckets: bool = _option(
        False, "Data", "Keep the ratios of the images of a folder: each step sees one size of about resolution² pixels."
    )
    bucket_multiple: int = _option(8, "Data", "Sides in buckets are multiples of this.")
    bucket_ratio: float = _option(2.0, "Data", "Largest ratio of the sides of a bucket.")
    center_crop: bool = _option(False, "Data", "Cut images that are not square to their central square.")
    random_flip: bool = _option(False, "Data", "Mirror half of the images, drawn anew each time.")
    class_conditional: bool = _option(False, "Data", "Give the network the class labels.")
    class_dropout: float = _option(0.1, "Data", "Share of labels dropped, for guidance; with --class_conditional.")
    vector_conditional: bool = _option(
        False, "Data", "Give the network the vectors `conditions` (N, K) of the .npz; dropped like labels."
    )
    latents: str | None = _option(None, "Data", "An .npz with latents (N, C, H, W), to be learned in place of images.")
    latent_scale: float = _option(1.0, "Data", "Factor of the latents, as in the autoencoder's configuration.")
    latent_shift: float = _option(0.0, "Data", "What is subtracted from the latents before.")
    image_condition: str | None = _option(None, "Data", "super_resolution or inpainting: images to be restored.")
    image_condition_config: dict[str, Any] = field(
        default_factory=dict, metadata=_about("Data", "JSON: factor and noise, or tiles and hidden.")
    )
    image_start: bool = _option(
        False, "Data", "Start at the degraded image in place of noise; linear flow, interpolant; implied by a bridge."
    )
    unreadable: str = _option(
        "error", "Data", "Image files that cannot be read: error, or skip them, with their names."
    )
    dataloader_num_workers: int = _option(0, "Data", "Processes that read images ahead, for sets not in memory.")

    label_noise: str | None = _option(
        None, "Wrong data", "Labels are wrong: rate, or file of p(seen | class) (.npy, .json, .csv); TDSM mends it."
    )
    corrupt_labels: bool = _option(False, "Wrong data", "Make the labels wrong by label_noise, for an experiment.")
    reference_data: str | None = _option(
        None, "Wrong data", "Folder or .npz of images in right proportions beside biased ones; TIW-DSM mends these."
    )
    simulated_bias: dict[str, Any] = field(
        default_factory=dict,
        metadata=_about("Wrong data", "JSON: classes, kept, reference; make the data biased, for an experiment."),
    )
    robust: bool = _option(True, "Wrong data", "Off: the plain loss on such data, to compare with.")
    guide_from: str | None = _option(
        None, "Wrong data", "Run whose classifier or discriminator is used; default: trained first."
    )
    guide_steps: int | None = _option(None, "Wrong data", "Steps of its training; default 1000, discriminator 200.")

    reflow_from: str | None = _option(None, "Reflow", "Trained folder: learn pairs of noise and what it makes of it.")
    reflow_pairs: int = _option(10_000, "Reflow", "Pairs drawn, kept in the folder pairs of output_dir.")
    reflow_method: str | None = _option(None, "Reflow", "Sampler of the pairs; default pathline's for the budget.")
    reflow_nfe: int = _option(100, "Reflow", "Network evaluations of a pair.")

    network: str = _option("unet", "Network", "unet or dit, built from diffusers.")
    skip_scale: float | None = _option(None, "Network", "ScaleLong: κ of the factors κ⁰, κ¹ ... on a UNet's skips.")
    skip_scaling: str | None = _option(
        None, "Network", "ScaleLong: constant (with skip_scale), inverse_sqrt2 (1/√2 on all skips), or learned."
    )
    init_from: str | None = _option(None, "Network", "Trained folder whose weights are the first; same network.")
    network_config: dict[str, Any] = field(
        default_factory=dict, metadata=_about("Network", "JSON: settings of the diffusers class to change.")
    )

    objective: str = _option(
        "flow",
        "Objective",
        "flow, noise, v, data, edm, interpolant, bridge, schroedinger or convex_flow: sets the options below.",
    )
    path: str | None = _option(
        None, "Objective", "Name of the path: linear, cosine, vp ...; one_sided_linear ...; brownian, ddbm-vp, i2sb ..."
    )
    path_config: dict[str, Any] = field(
        default_factory=dict, metadata=_about("Objective", "JSON: parameters of the path.")
    )
    prediction: str | None = _option(None, "Objective", "What the network predicts: velocity, noise, v, data or score.")
    loss_target: str | None = _option(None, "Objective", "In which prediction the error is measured; default its own.")
    loss_weight: str | None = _option(None, "Objective", "none, unit, edm, min_snr, p2, debiased, elbo, sigmoid, ...")
    loss_weight_config: dict[str, Any] = field(
        default_factory=dict, metadata=_about("Objective", "JSON: parameters of the weight.")
    )
    time_density: str | None = _option(
        None, "Objective", "uniform, logit_normal, mode, cosmap, lognormal_sigma, ..., or adaptive: follows the loss."
    )
    time_density_config: dict[str, Any] = field(
        default_factory=dict, metadata=_about("Objective", "JSON: parameters of the density.")
    )
    direction_weight: float = _option(0.0, "Objective", "Share of 1 - cosine of the velocity over channels, added.")
    antithetic: bool = _option(False, "Objective", "Interpolants: both signs of the latent noise, at two calls.")
    loss_uncertainty: bool = _option(False, "Objective", "EDM2: learn the weight of each noise level, loss/e^u + u.")
    stratified_times: bool = _option(True, "Objective", "Spread the times of a batch evenly over the density.")
    weighting_scheme: str | None = _option(None, "Objective", "diffusers' name for a density or a weight.")
    logit_mean: float | None = _option(None, "Objective", "Mean of logit_normal; above 0 leans to the data.")
    logit_std: float | None = _option(None, "Objective", "Standard deviation of logit_normal.")
    mode_scale: float | None = _option(None, "Objective", "Scale of mode.")
    cost_power: float = _option(2.0, "Objective", "convex_flow: p > 1 of the cost Σ|x|^p/p that its flow lowers.")
    sigma_data: float = _option(0.5, "Objective", "Standard deviation of the data, for the edm objective.")

    coupling: str = _option("independent", "Coupling", "independent, ot, sinkhorn, newton or c2ot.")
    coupling_config: dict[str, Any] = field(
        default_factory=dict, metadata=_about("Coupling", "JSON: parameters of the coupling.")
    )
    coupling_batch: int | None = _option(None, "Coupling", "Images coupled at once; default those of a step.")

    train_batch_size: int | None = _option(None, "Optimiser", "Images per process and micro-batch.")
    gradient_accumulation_steps: int = _option(1, "Optimiser", "Micro-batches per optimiser step.")
    max_train_steps: int | None = _option(None, "Optimiser", "Optimiser steps.")
    num_epochs: int | None = _option(None, "Optimiser", "Passes over the data, instead of max_train_steps.")
    learning_rate: float | None = _option(None, "Optimiser", "Peak learning rate.")
    lr_scheduler: str | None = _option(None, "Optimiser", "constant, constant_with_warmup, linear, cosine, ...")
    lr_warmup_steps: int | None = _option(None, "Optimiser", "Steps over which the rate rises.")
    adam_beta1: float = _option(0.9, "Optimiser", "First decay of AdamW.")
    adam_beta2: float = _option(0.99, "Optimiser", "Second decay of AdamW.")
    adam_weight_decay: float = _option(0.0, "Optimiser", "Weight decay of AdamW.")
    adam_epsilon: float = _option(1e-8, "Optimiser", "Epsilon of AdamW.")
    max_grad_norm: float = _option(1.0, "Optimiser", "Gradients are clipped to this norm.")
    mixed_precision: str = _option("no", "Optimiser", "no, fp16 or bf16.")
    cpu: bool = _option(False, "Optimiser", "Stay on the CPU even if there is an accelerator.")
    seed: int = _option(0, "Optimiser", "Seed of everything random.")

    use_ema: bool = _option(True, "Average", "Average the weights; the average is what is saved.")
    ema: str = _option("warmup", "Average", "warmup: exponential, warmed up; power: EDM2's, any length afterwards.")
    ema_max_decay: float = _option(0.9999, "Average", "Upper bound of the decay.")
    ema_inv_gamma: float = _option(1.0, "Average", "Inverse gamma of the decay's warm-up.")
    ema_power: float = _option(0.75, "Average", "Power of the decay's warm-up.")
    ema_stds: str = _option("0.05,0.1", "Average", "With power: lengths that are kept; the first is saved.")
    ema_snapshot_steps: int | None = _option(
        None, "Average", "With power: steps between snapshots; default 1/32 of all."
    )

    checkpointing_steps: int = _option(500, "Output", "Steps between checkpoints.")
    checkpoints_total_limit: int | None = _option(2, "Output", "Checkpoints kept; the oldest go first.")
    resume_from_checkpoint: str | None = _option(None, "Output", "A checkpoint folder, or latest.")
    logging_dir: str = _option("logs", "Output", "Folder of the trackers, inside output_dir.")
    logging_steps: int = _option(10, "Output", "Steps between lines of log.jsonl.")
    report_to: str | None = _option(None, "Output", "Trackers, such as tensorboard or wandb; several with commas.")
    preview_steps: int = _option(0, "Output", "Steps between grids of samples; 0 for one at the end.")
    preview_images: int = _option(64, "Output", "Images in a preview; 0 for none.")
    preview_nfe: int = _option(20, "Output", "Network evaluations of a preview.")
    preview_method: str | None = _option(None, "Output", "Sampler of the previews; default pathline's for the budget.")
    plots: bool = _option(True, "Output", "At the end, plot loss and gradient norm, also by noise level (matplotlib).")
    progress: bool = _option(True, "Output", "Show a progress bar.")
    push_to_hub: bool = _option(False, "Output", "Upload the result to the hub.")
    hub_model_id: str | None = _option(None, "Output", "Repository on the hub; default the name of output_dir.")

    def to_dict(self) -> dict[str, Any]:
        """All options as a dictionary for JSON."""
        return asdict(self)


RUN_ONLY = frozenset(
    {
        "output_dir",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "resume_from_checkpoint",
        "logging_dir",
        "logging_steps",
        "report_to",
        "preview_steps",
        "preview_images",
        "preview_nfe",
        "preview_method",
        "plots",
        "progress",
        "push_to_hub",
        "hub_model_id",
        "ema_snapshot_steps",
        "cpu",
        "dataloader_num_workers",
        "train_data_dir",
        "num_epochs",
    }
)
"""Options that a resumed run may change, because they do not change what is learned."""


_LENGTHS = ("max_train_steps", "num_epochs")
"""Two ways to tell how long a run is: one at a time."""


def merge_options(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Options of two sources, those of `over` first; a length given in `over` takes the place of any in `base`."""
    replaced = _LENGTHS if any(over.get(name) is not None for name in _LENGTHS) else ()
    return {**{name: value for name, value in base.items() if name not in replaced}, **over}


def option_fields() -> dict[str, Field[Any]]:
    """Fields of `TrainOptions` by name."""
    return {item.name: item for item in fields(TrainOptions)}


def option_type(name: str) -> tuple[type, bool]:
    """Type of an option without None (int, float, str, bool or dict), and whether it may be None."""
    hint = get_type_hints(TrainOptions)[name]
    optional = isinstance(hint, UnionType)
    core = next(part for part in get_args(hint) if part is not type(None)) if optional else hint
    return (dict if core is dict or getattr(core, "__origin__", None) is dict else core), optional


def read_config(path: str | Path) -> dict[str, Any]:
    """Options from a JSON or TOML file.

    Raises
    ------
    ValueError
        If it cannot be read, or holds an unknown option or one of a wrong type.
    """
    place = Path(path)
    if place.suffix.lower() == ".toml":
        try:
            values = tomllib.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{place} cannot be read as TOML: {error}") from error
    elif place.suffix.lower() == ".json":
        values = read_json(place)
    else:
        raise ValueError(f"config must be a .json or .toml file, got {place}")
    return check_types(values, str(place))


def check_types(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the options if all are known and of the right type, whole numbers standing for floats.

    Raises
    ------
    ValueError
        Naming the option and `where` it was read.
    """
    known = option_fields()
    result = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f"{where}: {unknown_name('option', name, known)}")
        kind, optional = option_type(name)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        exact = type(value) is kind or (value is None and optional)
        if not exact:
            raise ValueError(f"{where}: {name} must be of type {kind.__name__}, got {value!r}")
        result[name] = value
    return result
