"""The divergence of a field, exact or by Hutchinson's estimator with fixed probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pathline.interpolants import check_name

from ..keyed_noise import keyed_normal

Field = Callable[[Tensor], Tensor]
KINDS = ("exact", "rademacher", "gaussian")
PROBE_ROW = -4
"""Row under which probes are drawn: the start has −1, Brownian paths −2, dragged patches −3."""


class Divergence:
    """Trace of the Jacobian of a field at states (B, ...), sample by sample.

    Parameters
    ----------
    kind : {"exact", "rademacher", "gaussian"}
        "exact" costs as many backward passes as a sample has elements. The others estimate it by probeᵀ·J·probe with
        probes that stay the same for a whole trajectory, so that what is integrated is smooth (Grathwohl et al. 2019).
        With S the symmetric part of J the variance is 2·Σ_{i≠j} S_ij² for Rademacher probes, which are exact for a
        diagonal J, and 2·‖S‖² for Gaussian ones.
    x : Tensor (B, ...)
        Any state of the run.
    probes : int ≥ 1
        Number of independent probes, one backward pass each; the estimates are kept apart.
    seed, samples : key of the probes

    Raises
    ------
    ValueError
        Unknown kind, fewer than one probe, or several probes of an exact trace.
    """

    def __init__(
        self, kind: str, x: Tensor, *, probes: int = 1, seed: int = 0, samples: Sequence[int] | Tensor | None = None
    ) -> None:
        check_name("divergence", kind, KINDS)
        if probes < 1 or (kind == "exact" and probes != 1):
            raise ValueError(
                f"probes={probes!r} is not possible with divergence={kind!r}; it is 1, or more of random ones"
            )
        self.kind, self.columns = kind, probes
        self._probes: list[Tensor] = []
        index = torch.arange(len(x), device=x.device) if samples is None else torch.as_tensor(samples, device=x.device)
        for slot in range(probes if kind != "exact" else 0):
            z = keyed_normal(x.shape[1:], seed, index, PROBE_ROW, slot, dtype=x.dtype, device=x.device)
            self._probes.append(torch.where(z < 0.0, -1.0, 1.0).to(x.dtype) if kind == "rademacher" else z)

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        """(field(x), its divergence of shape (B, columns)); the graph is not kept."""
        with torch.inference_mode(False), torch.enable_grad():
            state = (x.clone() if x.is_inference() else x.detach()).requires_grad_()
            value = field(state)
            if not value.requires_grad:  # a constant field
                return value.detach(), x.new_zeros(len(x), self.columns)
            if self.kind == "exact":
                trace = _trace(value, state)[:, None]
            else:
                trace = torch.stack([_quadratic(value, state, probe) for probe in self._probes], dim=1)
        return value.detach(), trace.detach()


def _quadratic(value: Tensor, state: Tensor, probe: Tensor) -> Tensor:
    (pulled,) = torch.autograd.grad(value, state, probe, retain_graph=True)
    return (pulled * probe).flatten(1).sum(1)


def _trace(value: Tensor, state: Tensor) -> Tensor:
    return torch.stack([row[:, k] for k, row in enumerate(jacobian_rows(value, state))]).sum(0)


def jacobian_rows(value: Tensor, state: Tensor) -> list[Tensor]:
    """Rows of every sample's Jacobian, each (B, d): the gradients of each element of `value` (B, ...) by its state."""
    flat = value.flatten(1)
    rows = []
    for k in range(flat.shape[1]):
        (row,) = torch.autograd.grad(flat[:, k].sum(), state, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(state).flatten(1) if row is None else row.flatten(1))
    return rows
