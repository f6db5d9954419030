"""A Ray cluster: who its nodes are, what each of them is sent once, and tasks for their processes.

Scheduling, retries, membership and transport are Ray's. Here is what Ray does not know: which nodes may take part, how a
process keeps what its tasks work with, when a task hangs, and what all of that is called in a sentence. Nothing here knows a
store or a network, and nothing imports Ray before a `Cluster` is entered.

connection   `Cluster`: connect, look at the nodes, share values, actors beside this process
nodes        a node, its name, and the versions that must be the same on all of them
crew         `Crew`: tasks for the processes of the cluster, given and taken back; faults
serving      such a process, from within
board        where processes say what they are at
code         source files of one's own that travel to the nodes
"""

from datamodels.cluster.code import Code
from datamodels.cluster.connection import Cluster, Shared
from datamodels.cluster.crew import Back, Crew
from datamodels.cluster.nodes import Node

__all__ = ["Back", "Cluster", "Code", "Crew", "Node", "Shared"]
