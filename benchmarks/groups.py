"""A process group of one, in this very process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from minetorch.distributed.gloo_threads import let_threads_finish

__all__ = ["group_of_one"]


@contextmanager
def group_of_one() -> Iterator[None]:
    """For what asks torch.distributed for its group, as DDP and dcp do."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        let_threads_finish()
        dist.destroy_process_group()
