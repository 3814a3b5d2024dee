"""Everything that one `set_timesteps` fixes: schedule, table, plans for every start, public lists."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..fitted import check_fit
from ..nodes import Nodes
from ..registry import build_table, method_info
from ..table import Table
from .calls import Plan, compile_plan
from .data_range import Rule
from .family import Family, Schedule, Singles
from .fused import FusedPlan, can_fuse
from .late_start import full_table, late_table
from .settings import DEFAULT_METHOD, DEFAULT_OPTIONS, Settings


@dataclass(frozen=True)
class Compiled:
    """A compiled run.

    Attributes
    ----------
    table : Table
        What `pathline.samplers.sample` would run on the same nodes.
    timesteps, sigmas : float32 arrays
        One entry for each network call, and the terminal sigma.
    rule : Rule or None
        Applied to every data prediction.
    """

    family: Family
    schedule: Schedule
    settings: Settings
    table: Table
    timesteps: Singles
    sigmas: Singles
    rule: Rule | None = None
    plans: dict[int, Plan] = field(default_factory=dict)
    fusions: dict[int, FusedPlan] = field(default_factory=dict)

    @staticmethod
    def build(family: Family, schedule: Schedule, settings: Settings, rule: Rule | None = None) -> Compiled:
        """Compile the method on the schedule.

        Raises
        ------
        ValueError
            The method cannot run on these nodes, with this kind of network, or in a pipeline at all; or a table was
            made for another path or fitted to another prediction.
        """
        if settings.table is None:
            table = full_table(lambda nodes: build_table(settings.method, nodes, **settings.options), schedule)
        else:
            table = settings.table
        if settings.table is not None or table.provenance:
            check_fit(table, path=family.path, prediction=family.prediction)
        plan = compile_plan(table, family.prediction, family.sign, rule)
        levels = [call.level for call in plan.calls]
        sigmas = np.array([family.sigma(level) for level in (*levels, table.end)]).astype(np.float32)
        labels = family.call_labels(schedule, levels)
        timesteps = family.timesteps(sigmas[:-1], labels) if schedule.labels is None else labels.astype(np.float32)
        return Compiled(family, schedule, settings, table, timesteps, sigmas, rule, {0: plan})

    def __deepcopy__(self, memo: dict[int, Any]) -> Compiled:
        """Compiled runs never change, so copies of a scheduler share them."""
        return self

    def plan(self, index: int) -> Plan:
        """The plan of a run that begins at this call.

        Raises
        ------
        ValueError
            There is no such call.
        """
        if index not in self.plans:
            calls = self.plans[0].calls
            if not 0 <= index < len(calls):
                raise ValueError(
                    f"call {index} is not possible, this run has {len(calls)} calls (0 to {len(calls) - 1}); "
                    "call set_timesteps for a new run"
                )
            table, before = late_table(self._late, self.schedule, [call.level for call in calls[index:]])
            plan = compile_plan(table, self.family.prediction, self.family.sign, self.rule)
            self.plans[index] = replace(plan, before_step=before)
        return self.plans[index]

    def _late(self, nodes: Nodes, *, left_out: int) -> Table:
        if self.settings.table is not None:  # its rows go on from those left out
            return build_table(DEFAULT_METHOD, nodes, **DEFAULT_OPTIONS)
        method = self.settings.method
        options = method_info(method).late_options(self.schedule.nodes, self.settings.options, left_out)
        options.pop("afs", None)  # an analytic first step is for pure noise
        return build_table(method, nodes, **options)

    def fused(self, index: int) -> FusedPlan | None:
        """The same plan with compiled calls, where the settings ask for them and the plan allows it."""
        if not self.settings.fused or not can_fuse(self.plan(index)):
            return None
        if index not in self.fusions:
            self.fusions[index] = FusedPlan(self.plan(index))
        return self.fusions[index]

    def find(self, timestep: Any, shown: Tensor | None) -> int:
        """The call that a timestep belongs to.

        An entry of the timesteps shown to the pipeline is recognised by its place in memory, which needs no read
        from the device; anything else, or all where `shown` is None, is compared by value. Of equal entries the one
        that opens a step counts.

        Raises
        ------
        ValueError
            An integer that is an index of the timesteps and nowhere near any of their values.
        RuntimeError
            While a compiler traces the loop, which cannot look at a timestep.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "a compiled loop cannot look up where it begins: call scheduler.set_begin_index(0) after "
                "set_timesteps, outside of the compiled function"
            )
        if isinstance(timestep, Tensor):
            ours = shown is not None and timestep.dtype == shown.dtype and timestep.device == shown.device
            if shown is not None and ours and timestep.numel():
                place, rest = divmod(timestep.data_ptr() - shown.data_ptr(), shown.element_size())
                if rest == 0 and 0 <= place < shown.numel():
                    return place
            whole = not timestep.is_floating_point()
            value = float(timestep.reshape(-1)[0])
        else:
            whole, value = isinstance(timestep, int), float(timestep)
        distance = np.abs(self.timesteps - np.float32(value))
        nearest = int(np.argmin(distance))
        if whole and distance[nearest] > 0.5 and 0 <= value < len(self.timesteps):
            raise ValueError(
                f"timestep {int(value)} is an index, not a time; pass the entries of scheduler.timesteps "
                f"({self.timesteps[0]:g} to {self.timesteps[-1]:g})"
            )
        equal = [int(k) for k in np.flatnonzero(self.timesteps == self.timesteps[nearest])]
        return next((k for k in equal if len(equal) > 1 and self.plan(k).before_step == 0), nearest)
