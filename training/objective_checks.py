"""Which options go with which kind of objective; refused before any work."""

from __future__ import annotations

from .options import TrainOptions

ADAPTIVE = "adaptive"
LATENT_POWER = "latent_power"
_LEVEL_WEIGHTS = ("elbo", "sigmoid", "edm_monotonic")


def check_objective(options: TrainOptions) -> None:
    """Refuse options that make no sense with the objective.

    Raises
    ------
    ValueError
        Naming the option, its value and what is allowed.
    """
    _check_adaptive(options)
    if options.objective not in ("interpolant", "bridge"):
        if options.antithetic:
            raise ValueError("antithetic pairs are for objective 'interpolant', with latent noise in its path")
        return
    kind = f"objective {options.objective!r}"
    for name in ("loss_target", "direction_weight"):
        if getattr(options, name):
            raise ValueError(f"{name}={getattr(options, name)!r} is for objectives on Gaussian paths, not for {kind}")
    if options.loss_weight not in ("none", LATENT_POWER):
        raise ValueError(f"loss_weight {options.loss_weight!r} does not go with {kind}; allowed: none, {LATENT_POWER}")
    if options.loss_weight == "none" and options.loss_weight_config:
        raise ValueError(f"loss_weight_config {options.loss_weight_config} needs loss_weight {LATENT_POWER!r}")
    if options.objective == "bridge":
        _check_bridge(options)


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
