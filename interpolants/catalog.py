"""Paths by name."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .discrete_path import DiscretePath
from .errors import check_name, unknown_name
from .exploding_paths import EDMPath, VEPath
from .flow_paths import CosinePath, LinearPath, PolynomialPath
from .kinetic_path import KineticOptimalPath
from .path import GaussianPath
from .preserving_paths import CosineVPPath, LinearVPPath, SigmoidVPPath, SubVPPath, VPPath

_PATHS: dict[str, type[GaussianPath]] = {
    path.name: path
    for path in (
        LinearPath,
        CosinePath,
        PolynomialPath,
        KineticOptimalPath,
        LinearVPPath,
        VPPath,
        CosineVPPath,
        SigmoidVPPath,
        SubVPPath,
        VEPath,
        EDMPath,
        DiscretePath,
    )
}


def list_paths() -> list[str]:
    """Names of all Gaussian paths."""
    return list(_PATHS)


def path_by_name(name: str, **parameters: Any) -> GaussianPath:
    """Make a path from its name and parameters, for instance ``path_by_name("vp", beta_max=10.0)``.

    Raises
    ------
    ValueError
        If the name or a parameter is not known, or a value is not allowed. ``"discrete"`` needs
        ``alphas_cumprod``.
    """
    kind = _PATHS[check_name("path", name, _PATHS)]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in parameters:
        if key not in known:
            raise unknown_name(f"parameter of path {name!r}", key, known or ["(none)"])
    if kind is DiscretePath and "alphas_cumprod" not in parameters:
        raise ValueError("path 'discrete' needs alphas_cumprod, the list of signal^2 of the training steps")
    return kind(**parameters)


def path_from_config(config: Mapping[str, Any]) -> GaussianPath:
    """Make a path from what `GaussianPath.config` returned.

    Raises
    ------
    ValueError
        If ``"name"`` is missing or the rest does not fit.
    """
    if "name" not in config:
        raise ValueError(f"a path configuration needs the key 'name', got the keys {sorted(config)}")
    parameters = {key: value for key, value in config.items() if key != "name"}
    return path_by_name(config["name"], **parameters)
