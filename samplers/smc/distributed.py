"""A population over several processes: N particles on P processes are those of one, bit by bit.

Every process evaluates its own slots. At a checkpoint the log-weights of all are gathered (N numbers), each process
finds the same ancestors on its host from the same key, and states travel only where an ancestor lives elsewhere;
survivors stay in place, so most checkpoints move little or nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class ProcessRanks:
    """The processes of a torch.distributed group, as started by accelerate or torchrun.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup, optional
        By default all processes.

    Raises
    ------
    ValueError
        torch.distributed has not been started.
    """

    def __init__(self, group: Any = None) -> None:
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            raise ValueError(
                "no process group: start with `accelerate launch` or torchrun, and make an Accelerator (or call "
                "torch.distributed.init_process_group) first"
            )
        self.group = group
        self.rank = int(distributed.get_rank(group))
        self.count = int(distributed.get_world_size(group))

    def collect(self, value: Tensor) -> Tensor:
        """Rows of all processes (count·n, ...), in the order of ranks, from this one's (n, ...)."""
        from torch import distributed

        parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(self.count)]
        distributed.all_gather(parts, value.contiguous(), group=self.group)
        return torch.cat(parts)
