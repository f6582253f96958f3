"""Brings the nodes of a job together, and carries messages between them.

One node leads: the node that hosts the store. Nodes send it reports; it sends orders, which every node receives in the
same order. The leader alone decides, so that no two nodes act on different decisions. Without a second node there is
no store, and both ways are queues in this process.
"""
