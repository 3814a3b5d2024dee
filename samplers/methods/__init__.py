"""One file per family of methods; importing this package registers them all."""

from . import adams, ddim, dpm, ipndm, lagrange, momentum, plms, runge_kutta, singlestep, unipc

__all__ = ["adams", "ddim", "dpm", "ipndm", "lagrange", "momentum", "plms", "runge_kutta", "singlestep", "unipc"]
