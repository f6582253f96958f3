"""The environment variables of a worker: a pure function of the plan and of the round.

=============================  ==========================================================================
RANK, LOCAL_RANK, WORLD_SIZE,  as torchrun sets them; a worker's GPU is ``cuda:LOCAL_RANK``
LOCAL_WORLD_SIZE, GROUP_RANK,
MASTER_ADDR, MASTER_PORT,
TORCHELASTIC_*, ...
MINETORCH_DEVICE               ``cpu``, ``cuda`` or ``xpu``: the kind of device that this launch was planned for
MINETORCH_LAUNCH_ID            the same in all workers of this launch and in no other launch
MINETORCH_ATTEMPT              which start of all workers this is, from 1; unlike TORCHELASTIC_RESTART_COUNT it also
                               counts restarts after a machine has left or joined
MINETORCH_LAST_STEP,           after a failure: the step that a Trainer had reached, and when it failed, as Unix time
MINETORCH_LAST_TIME            in seconds
MINETORCH_HEARTBEAT_FD         descriptor of the memory to which a Trainer writes its progress (see heartbeat.py)
MINETORCH_CONSOLE_COLUMNS      columns left on a line of the launcher's terminal; unset without a terminal.
                               A script that finds it may draw a progress bar with carriage returns
OMP_NUM_THREADS                threads per worker: ``--threads``, else the user's own, else an equal share
CUDA_VISIBLE_DEVICES           empty on ``cpu``, one GPU with ``--virtual-local-rank``, else unchanged
ACCELERATE_USE_CPU             ``true`` on ``cpu``, else unchanged
=============================  ==========================================================================

MINETORCH_HEARTBEAT_FD is set in the worker itself. On one node a worker's RANK is its LOCAL_RANK. On many nodes the
ranks follow the order of the nodes, and RANK, WORLD_SIZE, GROUP_RANK, MASTER_ADDR and MASTER_PORT are known only after
the nodes have met.
"""

from __future__ import annotations

from collections.abc import Mapping

from minetorch_launch.plan import LaunchPlan
from minetorch_launch.rendezvous.round import Round


def worker_environment(
    plan: LaunchPlan,
    round_: Round,
    local_rank: int,
    error_file: str,
    last_failure: tuple[int, float] | None = None,
) -> dict[str, str]:
    """All variables that the launcher sets for one worker, over those of its own environment.

    Torch's ``record`` writes an exception to ``error_file``. ``last_failure`` holds the step that a Trainer had reached
    before the last failure, and the Unix time of that failure.
    """
    env = {
        **_torchrun(plan, round_, local_rank, error_file),
        **plan.env,
        "LOCAL_RANK": "0" if plan.options.virtual_local_rank else str(local_rank),
        "MINETORCH_LAUNCH_ID": round_.launch_id,
        "MINETORCH_ATTEMPT": str(round_.number),
        **plan.workers[local_rank].env,
    }
    if last_failure is not None:
        step, time = last_failure
        env |= {"MINETORCH_LAST_STEP": str(step), "MINETORCH_LAST_TIME": repr(time)}
    return env


def _torchrun(plan: LaunchPlan, round_: Round, local_rank: int, error_file: str) -> Mapping[str, str]:
    rank, world_size = str(round_.ranks[local_rank]), str(round_.world_size)
    return {
        "RANK": rank,
        "GROUP_RANK": str(round_.node_rank),
        "ROLE_RANK": rank,
        "ROLE_NAME": plan.options.role,
        "LOCAL_WORLD_SIZE": str(len(plan.workers)),
        "WORLD_SIZE": world_size,
        "GROUP_WORLD_SIZE": str(len(round_.participants)),
        "ROLE_WORLD_SIZE": world_size,
        "MASTER_ADDR": round_.master_address,
        "MASTER_PORT": str(round_.master_port),
        "TORCHELASTIC_RESTART_COUNT": str(round_.failures),
        "TORCHELASTIC_MAX_RESTARTS": str(plan.options.max_restarts),
        "TORCHELASTIC_RUN_ID": plan.rdzv_id,
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0 must not bind the port: the launcher has
        "TORCHELASTIC_ERROR_FILE": error_file,
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": plan.async_error_handling,
    }
