"""One file per family of methods; importing this package registers them all."""

from . import adams, ddim, dpmpp, ipndm, runge_kutta, unipc

__all__ = ["adams", "ddim", "dpmpp", "ipndm", "runge_kutta", "unipc"]
