"""Notices that the workers hang, and tells where each of them is.

::

    memory       what a worker shares with its launcher: heartbeat and stacks
    watch        heartbeats -> the world stands still, or not
    collect      asks the workers where they are
    waits        stack -> what it waits in
    rollcall     all ranks' answers -> those at the same place together
"""
