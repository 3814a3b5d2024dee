"""SDE inversion: the noise that makes a stochastic sampler draw a given image, and what it draws with it elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..border import Model
from ..guidance import Guidance
from ..loop import run
from ..noisy_moves import FollowStates, NoisyMove, no_noise
from ..run_state import Hook, Result
from ..table import Table
from .chains import forward_chain


@dataclass(frozen=True)
class Inversion:
    """A noising chain of an image and the noise with which a table retraces it.

    Attributes
    ----------
    table : Table
    chain : tuple of M + 1 tensors (B, ...)
        States from the table's start to the image itself.
    noises : mapping of (row, slot) -> Tensor (B, ...)
        The recovered standard normals.
    prediction : str
    """

    table: Table
    chain: tuple[Tensor, ...]
    noises: Mapping[tuple[int, int], Tensor]
    prediction: str

    @property
    def start(self) -> Tensor:
        """The noisiest state, where an edit is made."""
        return self.chain[0]

    def source(self, row: int, slot: int, like: Tensor) -> Tensor:
        """The recovered noise as a noise source of `run`."""
        return self.noises[row, slot].to(like)

    def statistics(self) -> tuple[float, float]:
        """Mean and variance of all recovered noise: 0 and 1 for fine grids, |variance − 1| = O(step) else."""
        every = torch.cat([z.double().flatten() for z in self.noises.values()])
        return float(every.mean()), float(every.var())

    def decode(
        self,
        model: Model,
        x: Tensor | None = None,
        *,
        model_kwargs: Mapping[str, Any] | None = None,
        guidance: Guidance | None = None,
        hooks: Sequence[Hook] = (),
        full: bool = False,
        **options: Any,
    ) -> Tensor | Result:
        """Sample with the recovered noise: from the chain's start what was inverted, to rounding; else an edit of it.

        Parameters
        ----------
        model, model_kwargs, guidance, hooks, full, options : as in `run`
            Unedited conditions give the image back only if the model is called as it was for the inversion: same batch,
            dtype and guidance.
        x : Tensor (B, ...), optional
            An edited start.
        """
        start = self.start if x is None else x
        given: dict[str, Any] = {"prediction": self.prediction, "model_kwargs": model_kwargs, "guidance": guidance}
        return run(self.table, model, start, noise=self.source, hooks=hooks, full=full, **given, **options)


def invert_sde(
    table: Table,
    model: Model,
    x: Tensor,
    *,
    prediction: str = "data",
    model_kwargs: Mapping[str, Any] | None = None,
    guidance: Guidance | None = None,
    seed: int = 0,
    samples: Sequence[int] | Tensor | None = None,
    progress: bool = False,
) -> Inversion:
    """Noise an image along a chain and recover the noise of the reverse sampler (CycleDiffusion's encoder).

    The image is the state at the table's end (at a little noise, as DDPM's chains begin from the clean image), the
    chain is the noising process through the levels of the table, and every move's noise is (next state − mean)/spread.
    Costs one run of the table.

    Parameters
    ----------
    table : Table
        Stochastic, with one noise in a row and in its last one; see `editing_table`.
    x : Tensor (B, ...)
    seed, samples : key of the chain
    Other parameters are those of `run`.

    Raises
    ------
    ValueError
        As `forward_chain` and `noisy_moves`, before any call.
    """
    chain = forward_chain(table, x, seed=seed, samples=samples)
    noises: dict[tuple[int, int], Tensor] = {}

    def keep(move: NoisyMove, z: Tensor) -> None:
        noises[move.row, move.slot] = z

    follow = FollowStates(table, chain[1:], keep)
    given: dict[str, Any] = {"prediction": prediction, "model_kwargs": model_kwargs, "guidance": guidance}
    run(table, model, chain[0], noise=no_noise, hooks=[follow], progress=progress, **given)
    return Inversion(table, tuple(chain), noises, prediction)


def cycle_diffusion(
    table: Table,
    model: Model,
    x: Tensor,
    *,
    source: Mapping[str, Any],
    target: Mapping[str, Any],
    source_guidance: Guidance | None = None,
    target_guidance: Guidance | None = None,
    target_model: Model | None = None,
    **options: Any,
) -> Tensor:
    """CycleDiffusion (Wu and De la Torre 2023, arXiv:2210.05559): invert under one condition, sample under another.

    Parameters
    ----------
    table, model, x, options : as in `invert_sde`
    source, target : mapping
        Keyword arguments of the model for the image as it is and as it shall be.
    source_guidance, target_guidance : Guidance, optional
    target_model : optional
        Another model to decode with, such as one of another domain.
    """
    found = invert_sde(table, model, x, model_kwargs=source, guidance=source_guidance, **options)
    decoded = found.decode(target_model or model, model_kwargs=target, guidance=target_guidance)
    assert isinstance(decoded, Tensor)
    return decoded.to(x.dtype)
