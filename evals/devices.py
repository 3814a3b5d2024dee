"""Whether a device is there, asked before any work."""

from __future__ import annotations


def check_device(device: str) -> None:
    """Raise unless tensors can be made on `device` and read back.

    Parameters
    ----------
    device : str
        As torch names it: cpu, cuda, cuda:1, mps.

    Raises
    ------
    ValueError
        A name that torch does not know, or a device that this machine lacks; with torch's reason.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--device {device} is not possible here: {reason}") from None
