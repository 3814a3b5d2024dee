"""One file per family of methods; importing this package registers them all."""

from . import (
    adams,
    ancestral,
    bridges,
    churn,
    ddim,
    dpm,
    er_sde,
    ipndm,
    lagrange,
    momentum,
    plms,
    runge_kutta,
    sa_solver,
    singlestep,
    unipc,
)

__all__ = [
    "adams",
    "ancestral",
    "bridges",
    "churn",
    "ddim",
    "dpm",
    "er_sde",
    "ipndm",
    "lagrange",
    "momentum",
    "plms",
    "runge_kutta",
    "sa_solver",
    "singlestep",
    "unipc",
]
