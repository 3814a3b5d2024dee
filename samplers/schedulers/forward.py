"""The forward process at given timesteps: image-to-image, in-painting and training read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .compiled import Compiled
    from .family import Family


class ForwardProcess:
    """`add_noise`, `scale_noise` and `get_velocity`, each at the level of the timesteps given."""

    _family: Family
    _compiled: Compiled | None
    timesteps: Tensor
    sigmas: Tensor

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """signal·data + noise·ε; timesteps of shape () or (B,)."""
        signal, level = self._levels(timesteps, original_samples)
        return (signal * original_samples + level * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor | None = None) -> Tensor:
        """`add_noise` with the argument order of flow schedulers.

        Raises
        ------
        ValueError
            Without noise.
        """
        if noise is None:
            raise ValueError("scale_noise needs the noise to mix in")
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Training target at data `sample`: noise − data for flow models, v = signal·ε − noise·data with betas."""
        return self._family.velocity(sample, noise, self._levels(timesteps, sample)).to(sample.dtype)

    def _check_times(self, times: Tensor) -> None:
        """Where looking at them costs no wait for a device."""
        if times.device.type != "cpu" or torch.compiler.is_compiling() or not times.numel():
            return
        low, high = float(times.min()), float(times.max())
        if not 0 <= low <= high <= self._family.train_steps:
            raise ValueError(
                f"timesteps go from {low:g} to {high:g}; they lie between 0 and num_train_timesteps="
                f"{self._family.train_steps}"
            )

    def _levels(self, timesteps: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        times = torch.as_tensor(timesteps)
        self._check_times(times)
        times = times.to(like.device)
        compiled = self._compiled
        if compiled is None or compiled.schedule.labels is None:
            signal, level = self._family.forward(times)
        else:  # labels that someone set apart from the sigmas: the nearest one counts
            shown = self.timesteps.to(like.device)
            gap, place = (shown[:, None] - times.reshape(1, -1)).abs().min(0)
            signal, level = self._family.mix(self.sigmas.to(like.device)[place])
            if compiled.schedule.nominal:
                own = self._family.forward(times.reshape(-1))
                signal, level = (torch.where(gap < 1e-3, a, b) for a, b in zip((signal, level), own, strict=True))
            signal, level = signal.reshape(times.shape), level.reshape(times.shape)
        wide = torch.promote_types(like.dtype, torch.float32)
        shape = (-1,) + (1,) * (like.ndim - 1) if times.ndim else ()
        return signal.to(wide).reshape(shape), level.to(wide).reshape(shape)
