"""Which options go with which kind of objective; refused before any work."""

from __future__ import annotations

from .options import TrainOptions
from .robust_data import check_bias

ADAPTIVE = "adaptive"
LATENT_POWER = "latent_power"
NOT_GAUSSIAN = ("interpolant", "bridge", "schroedinger", "convex_flow")
"""Objectives that are no regression on a Gaussian path."""
_FIXED = {"schroedinger": "brownian", "convex_flow": "linear"}
"""Path of each objective that has no other, and no other prediction or weight."""
SCHROEDINGER_PLANS = ("sinkhorn", "newton", "ot")
_LEVEL_WEIGHTS = ("elbo", "sigmoid", "edm_monotonic")


def check_objective(options: TrainOptions) -> None:
    """Refuse options that make no sense with the objective.

    Raises
    ------
    ValueError
        Naming the option, its value and what is allowed.
    """
    _check_path_config(options)
    _check_adaptive(options)
    _check_wrong_data(options)
    if options.loss_uncertainty and (options.objective in NOT_GAUSSIAN or options.time_density == ADAPTIVE):
        raise ValueError(
            "loss_uncertainty weights the log-SNR of a Gaussian path (flow, noise, v, data, edm) and does not go with "
            f"objective {options.objective!r} and time_density {options.time_density!r}"
        )
    if options.objective not in NOT_GAUSSIAN:
        if options.antithetic:
            raise ValueError("antithetic pairs are for objective 'interpolant', with latent noise in its path")
        return
    kind = f"objective {options.objective!r}"
    for name in ("loss_target", "direction_weight"):
        if getattr(options, name):
            raise ValueError(f"{name}={getattr(options, name)!r} is for objectives on Gaussian paths, not for {kind}")
    if options.objective in _FIXED:
        _check_fixed(options)
        return
    if options.loss_weight not in ("none", LATENT_POWER):
        raise ValueError(f"loss_weight {options.loss_weight!r} does not go with {kind}; allowed: none, {LATENT_POWER}")
    if options.loss_weight == "none" and options.loss_weight_config:
        raise ValueError(f"loss_weight_config {options.loss_weight_config} needs loss_weight {LATENT_POWER!r}")
    if options.objective == "bridge":
        _check_bridge(options)


_WORDS = ("schedule", "latent", "prediction")
"""Parameters of a path that are names; all others are numbers, or lists of them."""


def _check_path_config(options: TrainOptions) -> None:
    for key, value in options.path_config.items():
        wanted = "a name" if key in _WORDS else "a number or true or false"
        fits = isinstance(value, str) if key in _WORDS else isinstance(value, bool | int | float | list)
        if not fits:
            raise ValueError(f"path_config has {key}={value!r} for path {options.path!r}, which must be {wanted}")


def _check_fixed(options: TrainOptions) -> None:
    name = options.objective
    fixed = {"path": _FIXED[name], "prediction": "velocity", "loss_weight": "none", "antithetic": False}
    for key, allowed in {**fixed, "image_condition": None}.items():
        if getattr(options, key) != allowed:
            raise ValueError(
                f"{key}={getattr(options, key)!r} does not go with objective {name!r}; allowed: {allowed!r}"
            )
    if name == "convex_flow":
        if not 1.0 < options.cost_power < float("inf"):
            raise ValueError(f"cost_power must be a finite number above 1, got {options.cost_power!r}")
        return
    if set(options.path_config) != {"sigma"} or not _is_positive(options.path_config["sigma"]):
        raise ValueError(f"path_config of objective 'schroedinger' is a sigma above 0, got {options.path_config!r}")
    if options.reflow_from is not None:
        raise ValueError("reflow_from does not go with objective 'schroedinger', whose pairs come from a plan")
    if options.coupling not in SCHROEDINGER_PLANS:
        raise ValueError(
            f"coupling={options.coupling!r} does not make a Schrödinger bridge; allowed: "
            f"{', '.join(SCHROEDINGER_PLANS)}"
        )


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value < float("inf")


def _check_bridge(options: TrainOptions) -> None:
    if options.antithetic:
        raise ValueError("antithetic pairs are for objective 'interpolant', not for objective 'bridge'")
    if options.image_condition is None:
        raise ValueError(
            "objective 'bridge' leads from a degraded image to the image; give image_condition super_resolution or "
            "inpainting"
        )
    if options.coupling != "independent":
        raise ValueError(f"coupling={options.coupling!r} does not go with a bridge: it pairs each image with itself")


def _check_adaptive(options: TrainOptions) -> None:
    if options.time_density != ADAPTIVE:
        return
    if options.loss_weight not in _LEVEL_WEIGHTS:
        raise ValueError(
            f"time_density 'adaptive' needs a loss_weight stated in log-SNR ({', '.join(_LEVEL_WEIGHTS)}), got "
            f"{options.loss_weight!r}: with it a change of the density leaves the objective as it is"
        )
    if options.direction_weight:
        raise ValueError(
            f"direction_weight={options.direction_weight!r} does not go with time_density 'adaptive', which follows "
            "the weighted error alone; allowed: 0"
        )


def biased(options: TrainOptions) -> bool:
    """Whether the data are biased images beside reference images."""
    return options.reference_data is not None or bool(options.simulated_bias)


_PLAIN = {
    "image_condition": None,
    "reflow_from": None,
    "direction_weight": 0.0,
    "coupling": "independent",
}
"""Options that the losses for wrong data do not go with, at the values that are allowed."""


def _check_wrong_data(options: TrainOptions) -> None:
    noisy, about = options.label_noise is not None, "label_noise" if options.label_noise is not None else "biased data"
    if not noisy and not biased(options):
        for name in ("corrupt_labels", "guide_from", "guide_steps"):
            if getattr(options, name):
                raise ValueError(
                    f"{name}={getattr(options, name)!r} needs label_noise, reference_data or simulated_bias"
                )
        return
    if noisy and biased(options):
        raise ValueError("label_noise does not go with reference_data or simulated_bias: one of the two is mended")
    if options.reference_data is not None and options.simulated_bias:
        raise ValueError("reference_data and simulated_bias both give the reference images; give one of them")
    if options.simulated_bias:
        check_bias(options.simulated_bias)
    if noisy != options.class_conditional:
        word = (
            "needs class_conditional: the classes are what it mends" if noisy else "does not go with class_conditional"
        )
        raise ValueError(f"{about} {word}")
    if biased(options) and options.latents is not None:
        raise ValueError("latents do not go with reference_data or simulated_bias, which are images")
    if not options.robust:
        return
    if options.objective in NOT_GAUSSIAN:
        raise ValueError(f"{about} needs an objective on a Gaussian path (flow, noise, v, data, edm), or --no_robust")
    for name, allowed in _PLAIN.items():
        if getattr(options, name) != allowed:
            raise ValueError(f"{name}={getattr(options, name)!r} does not go with {about}; allowed: {allowed!r}")
    if options.time_density == ADAPTIVE:
        raise ValueError(f"time_density 'adaptive' does not go with {about}, whose losses are not those of the network")
