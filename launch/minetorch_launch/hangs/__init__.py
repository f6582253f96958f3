"""Detects that the workers hang, and shows where each of them is.

::

    shared_memory     what a worker shares with the launcher: heartbeat and stacks
    detector          heartbeats -> whether the workers hang
    blocking_calls    a stack -> the call that it is blocked in
    stack_summary     the stacks of all ranks -> ranks at the same place together
"""
