"""Runs the workers of a plan on torch.distributed.elastic: the only package that imports it, or torch.

Torch's agent decides when to start and to restart; its c10d rendezvous brings the nodes together. What is
changed, always through its own classes::

    Engine          one launch on this machine: builds the rest and says how it ended
    Agent           torch's agent; asks all nodes for one verdict on a failure
    Workers         stands in for torch's view of the worker processes
    Rendezvous      torch's rendezvous, with ranks in the order of the nodes and a fresh store for each round
    Council         how the agents of a round keep each other informed, and notice that one is gone
"""

from minetorch_launch.engine.engine import Engine, Outcome

__all__ = ["Engine", "Outcome"]
