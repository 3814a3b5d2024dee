"""Several processes that share one job: who this process is, and waiting for the others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """A process among ``size`` processes; rank 0 shows progress and writes what exists once."""

    rank: int = 0
    size: int = 1
    state: Any = None

    @property
    def is_main(self) -> bool:
        """True on the process that speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every process has arrived here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Part of a list, equal on all processes, that falls to this one."""
        return list(items[self.rank :: self.size])

    def close(self) -> None:
        """Leave the group."""
        if self.state is not None:
            self.state.destroy_process_group()


def join_world(device: str = "cpu") -> World:
    """The group a launcher started this process in, or a world of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return World()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu", timeout=timedelta(days=2))  # cells may differ by hours
    return World(state.process_index, state.num_processes, state)
