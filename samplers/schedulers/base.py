"""The general scheduler: any registered method in a diffusers pipeline."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import FrozenDict, register_to_config

from ..nodes import Nodes
from ..table import Table
from ..wrappers import is_flow
from .arguments import Request, check_numbers, read_request
from .beta_family import BetaFamily
from .calls import Plan
from .compiled import Compiled
from .conversion import CLASS, complete_config, stock_classes, switched, with_stock_solver
from .data_range import rule_of
from .family import Family
from .flow_family import FlowFamily
from .forward import ForwardProcess
from .output import changes_of
from .settings import Settings, read_settings, with_content
from .spacing import HIDDEN_KEYS, spacing_of
from .stepping import Stepping
from .stock_solver import of_run

_CACHED_REQUESTS = 8


class PathlineScheduler(Stepping, ForwardProcess, SchedulerMixin, ConfigMixin):
    """Any method of `list_methods()` as a diffusers scheduler, for flow models and for schedules with betas.

    The family follows the config: `prediction_type="flow_prediction"` (the default) or `use_flow_sigmas` mean a
    flow model, everything else a schedule with betas. Use `from_config(other_scheduler.config, pathline={...})`
    to take the training schedule of any stock scheduler over.

    Parameters
    ----------
    num_train_timesteps, shift, use_dynamic_shifting, ... : as in FlowMatchEulerDiscreteScheduler
    use_flow_sigmas, flow_shift : as in stock multistep schedulers; with the first on, the second is the shift
    beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr, timestep_spacing : as in stock
        schedulers with betas; unused by flow models
    prediction_type : {"flow_prediction", "epsilon", "sample", "v_prediction"}
    final_sigmas_type : {"zero", "sigma_min"}
    clip_sample, clip_sample_range : clip the data prediction to [−range, range]
    thresholding, dynamic_thresholding_ratio, sample_max_value : dynamic thresholding of it
        For every method and both families; goes before clip_sample. What a method stores is computed again from that
        data, see `samplers.thresholding` (stock DDIM with `use_clipped_model_output=True`).
    pathline : dict, optional
        {"method", "options", "grid", "grid_options", "seed", "exact_sigmas", "mu", "fused", "table"}, see `Settings`.

    Raises
    ------
    ValueError
        Unknown names, each with the nearest valid ones, and contradictory switches.
    """

    order = 1  # one entry of timesteps for each network call, also within a step of several calls
    default_pathline: ClassVar[Mapping[str, Any]] = {}

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        base_shift: float | None = 0.5,
        max_shift: float | None = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        invert_sigmas: bool = False,
        *,
        shift_terminal: float | None = None,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        time_shift_type: str = "exponential",
        stochastic_sampling: bool = False,
        prediction_type: str = "flow_prediction",
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        timestep_spacing: str = "leading",
        final_sigmas_type: str = "zero",
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        pathline: dict[str, Any] | None = None,
    ) -> None:
        # Stock classes drop keys that a source left at its defaults: their defaults are not these.
        kept = {key: value for key, value in self.config.items() if key != "_use_default_values"}
        pathline = with_content(pathline)
        self._internal_dict = FrozenDict({**kept, "pathline": pathline, CLASS: type(self).__name__})
        config = self.config
        self._settings: Settings = read_settings(pathline, self.default_pathline)
        check_numbers(config)
        rule_of(config)  # refused here rather than by the first run
        self._family: Family = FlowFamily(config) if is_flow(config) else BetaFamily(config)
        self._cache: OrderedDict[Request, Compiled] = OrderedDict()
        self._shift = float(flow_shift if use_flow_sigmas else shift)
        self._seed, self._offset = self._settings.seed, 0
        self._told = self._variance = False
        if isinstance(self._family, BetaFamily):
            self.betas = self._family.betas
            self.alphas = 1.0 - self.betas
            self.alphas_cumprod = self._family.alphas_cumprod
            self.final_alpha_cumprod = torch.tensor(1.0)
        self.init_noise_sigma = 1.0
        self._show_training_levels()
        self._compiled: Compiled | None = None
        self.num_inference_steps: int | None = None
        self._reset()

    # --- configuration ------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in diffusers, from the config of any stock scheduler of the two families or of one of ours.

        Raises
        ------
        ValueError
            The config belongs to a scheduler of another kind (EDM, VE, vector-quantised).
        """
        if isinstance(config, Mapping):
            config = cls._switched(config)
            config = complete_config(config, {key: kwargs.pop(key) for key in HIDDEN_KEYS if key in kwargs})
            kwargs = with_stock_solver(config, kwargs, cls.default_pathline)
        made = super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)
        # diffusers registers what the source's class did not show once more, and with it the source's name
        (made[0] if return_unused_kwargs else made).register_to_config(**{CLASS: cls.__name__})
        return made

    @classmethod
    def _switched(cls, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The config of another class of ours: a class with a method of its own runs that, the general one goes on."""
        ours = {c.__name__: c for c in _family_of(PathlineScheduler)}
        before = ours.get(str(config.get(CLASS)), cls)
        return config if before is cls else switched(config, before.default_pathline, cls.default_pathline)

    @classmethod
    def _get_compatibles(cls) -> list[type]:
        return [*_family_of(PathlineScheduler), *stock_classes()]

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def shift(self) -> float:
        """Shift of a flow schedule, for the next `set_timesteps`."""
        return self._shift

    def set_shift(self, shift: float) -> None:
        """Set the shift of a flow schedule for the next `set_timesteps`.

        Raises
        ------
        ValueError
            Not positive, or the schedule has betas, which nothing shifts.
        """
        if not isinstance(self._family, FlowFamily):
            raise ValueError(f"shift={shift!r} does not apply: this schedule has betas; only flows are shifted")
        if not float(shift) > 0:
            raise ValueError(f"shift={shift!r} is not possible; it must be positive")
        self._shift = float(shift)

    def set_seed(self, seed: int | None) -> None:
        """Key of the noise of the next runs; None draws a new one for every run from torch's generator."""
        self._seed = seed

    def set_sample_offset(self, offset: int) -> None:
        """Global index of the first sample of the next batches, so that a split batch gets the same noise."""
        self._offset = int(offset)

    @property
    def table(self) -> Table:
        """The table of the current timesteps, the one that `pathline.samplers.sample` would run."""
        return self._ready().table

    @property
    def plan(self) -> Plan:
        """The table cut at its network calls, as `step` executes it from the first one on."""
        return self._ready().plan(0)

    @property
    def nodes(self) -> Nodes:
        """The nodes of the current timesteps."""
        return self._ready().schedule.nodes

    # --- timesteps ----------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Compile the run.

        Parameters
        ----------
        num_inference_steps : int, optional
            Number of steps; may be left out where a list is given.
        device : torch device, optional
        timesteps : sequence of float, optional
            Labels of the steps, falling. For flow models they are N·σ and used unshifted; together with
            `sigmas` they are labels only.
        sigmas : sequence of float, optional
            Levels of the steps, with or without the terminal 0. For flow models they are shifted, unless the
            config's `pathline` has exact_sigmas; for schedules with betas they are noise/signal.
        mu : float, optional
            Shift for `use_dynamic_shifting`.

        Raises
        ------
        ValueError
            Lists of different lengths, levels out of range or order, or a method that cannot run on them.
        """
        if kwargs:
            raise ValueError(
                f"set_timesteps does not know {', '.join(kwargs)}; settings go into the config's 'pathline'"
            )
        request = read_request(num_inference_steps, timesteps, sigmas)._replace(
            mu=self._mu(mu),
            shift=self._shift,
            spacing=spacing_of(self.config),
            rule=rule_of(self.config),
        )
        if request not in self._cache:
            schedule, settings = self._family.schedule(request, self._settings), self._settings
            if self.default_pathline:
                settings = of_run(settings, self.config, request.steps, schedule)
            self._cache[request] = Compiled.build(self._family, schedule, settings, request.rule)
            if len(self._cache) > _CACHED_REQUESTS:
                self._cache.popitem(last=False)
        self._show(self._cache[request], device)
        self.num_inference_steps = request.steps
        self._reset()

    def _mu(self, mu: float | None) -> float | None:
        if mu is not None or not self.config.use_dynamic_shifting or not isinstance(self._family, FlowFamily):
            return None if mu is None else float(mu)
        if not self._told:
            self._told = True
            used = f"the static shift {self._shift:g}" if self._settings.mu is None else f"mu={self._settings.mu:g}"
            warnings.warn(
                f"use_dynamic_shifting is on, but no mu was given; {used} of the config is used", stacklevel=3
            )
        return self._settings.mu

    def _show(self, compiled: Compiled, device: str | torch.device | None) -> None:
        self._compiled = compiled
        with torch.inference_mode(False):  # so that both count their changes in place
            self.timesteps = torch.tensor(compiled.timesteps, device=device)
            self.sigmas = torch.tensor(compiled.sigmas, device=device)
        self._sigmas_shown = self.sigmas, changes_of(self.sigmas)
        self._timesteps_shown = self.timesteps
        self._variance = str(self.config.get("variance_type")).startswith("learned")
        self._prepare(compiled, 0)

    def _show_training_levels(self) -> None:
        sigmas = self._family.training_sigmas(self._shift).astype(np.float32)
        labels = np.arange(self._family.train_steps, dtype=np.float64)[::-1]
        self.timesteps = torch.tensor(self._family.timesteps(sigmas, labels))
        self.sigmas = torch.tensor(np.append(sigmas, np.float32(self._family.clean_sigma)))
        self.sigma_max, self.sigma_min = float(sigmas[0]), float(sigmas[-1])


def _family_of(cls: type[PathlineScheduler]) -> list[type[PathlineScheduler]]:
    """A class and everything derived from it, users' own classes too."""
    return [cls, *(found for derived in cls.__subclasses__() for found in _family_of(derived))]
