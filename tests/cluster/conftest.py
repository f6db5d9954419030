"""A cluster of several nodes on this machine, of Ray's own making for tests."""

from contextlib import contextmanager

import pytest

STORE = 100 * 2**20


@contextmanager
def a_cluster(*nodes, **head):
    """Nodes as named by their options, after a head without cores; ended whatever happens."""
    from ray.cluster_utils import Cluster

    how = {"include_dashboard": False, "object_store_memory": STORE}
    found = Cluster(initialize_head=True, head_node_args={**how, "num_cpus": 0, **head})
    try:
        for node in nodes:
            found.add_node(**{"object_store_memory": STORE, **node})
        yield found
    finally:
        found.shutdown()


@pytest.fixture(scope="module")
def two_nodes():
    with a_cluster({"num_cpus": 1}, {"num_cpus": 1}) as found:
        yield found
