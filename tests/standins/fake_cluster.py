"""A cluster in this process: its nodes are names, and its processes hold what they made.

A task begins in whichever free process is drawn from a seed, in the order in which they were given; which of those under way
ends next is drawn too: an order that no cluster would keep to, and none may depend on.
"""

import functools
import pickle
import random

from datamodels.cluster import Back, Node
from datamodels.errors import InputError

MOST_PUT_OFF = 1000


class Packed:
    """A value as it lies in an object store: its arrays can only be read there."""

    def __init__(self, value):
        self.buffers: list[bytes] = []
        self.content = pickle.dumps(value, protocol=5, buffer_callback=lambda of: self.buffers.append(bytes(of.raw())))

    def get(self):
        return pickle.loads(self.content, buffers=self.buffers)


class Seat:
    """A process on a node, and what it has made."""

    def __init__(self, node):
        self.node, self.here = Node(node, node), None


class FakeCluster:
    """Processes on nodes, one for each time that a node is named.

    `trouble(node, key)` is asked before a task is done: it may raise InputError, as the task would, or anything else, as if the
    driver came to its end; or say 'dies' for the process, or 'later' where others are to be done first.
    """

    def __init__(self, *nodes, seed=0, gpus=0.0, trouble=lambda _node, _key: None):
        self.rng, self.trouble, self.share_of_gpu = random.Random(seed), trouble, gpus
        self.seats, self.refused, self.done = [Seat(node) for node in nodes], [], []
        self.made = self.put_off = 0
        self.here = self.seats[0].node

    def join(self, node):
        self.seats.append(Seat(node))

    def nodes(self):
        return list(dict.fromkeys(seat.node for seat in self.allowed()))

    def slots(self):
        return len(self.allowed())

    def allowed(self):
        return [seat for seat in self.seats if seat.node not in self.refused]

    def gpus(self):
        return self.share_of_gpu

    def tasks_here(self):
        return functools.partial(int, 2)

    def share(self, value, what):
        assert what
        return Packed(value)

    def refuse(self, node, why, stage):
        assert why
        assert stage
        self.refused += [node] if node not in self.refused else []

    def crew(self, make, stage):
        assert stage
        return FakeCrew(self, Packed(make))


class FakeCrew:
    """See `cluster.Crew`."""

    def __init__(self, cluster, make):
        self.cluster, self.make, self.waiting, self.begun = cluster, make, [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.waiting, self.begun = [], []

    @property
    def idle(self):
        out = len(self.waiting) + len(self.begun)
        return max(self.cluster.slots() - out, 0 if out else 1)

    @property
    def room(self):
        return max(self.cluster.slots() + 2 - len(self.waiting) - len(self.begun), 0)

    def give(self, key, task, avoid=()):
        self.waiting.append((key, Packed(task), avoid))

    def back(self, timeout=1.0):
        del timeout
        self._begin()
        at = self.cluster.rng.randrange(len(self.begun))
        (key, task, avoid), seat = self.begun.pop(at)
        try:
            trouble = self.cluster.trouble(seat.node.name, key)
            if trouble == "dies":
                seat.here = None
                self.waiting.insert(0, (key, task, avoid))
                return []
            if trouble == "later":
                self.cluster.put_off += 1
                assert self.cluster.put_off < MOST_PUT_OFF, "nothing else is given meanwhile"
                self.begun.append(((key, task, avoid), seat))
                return []
            value, payload = Packed(task.get()(self._made(seat))).get()
        except InputError as e:
            return [Back(key, seat.node, 0.0, None, None, InputError(f"on {seat.node.name}: {e}"))]
        self.cluster.done.append(key)
        return [Back(key, seat.node, 0.1, value, payload, None)]

    def _begin(self):
        """Let tasks begin in free processes, the first given first."""
        for given in list(self.waiting):
            allowed = self.cluster.allowed()
            allowed = [seat for seat in allowed if seat.node not in given[2]] or allowed
            free = [seat for seat in allowed if not any(seat is other for _, other in self.begun)]
            if free:
                self.waiting.remove(given)
                self.begun.append((given, self.cluster.rng.choice(free)))

    def _made(self, seat):
        if seat.here is None:
            seat.here = self.make.get()("0" if self.cluster.gpus() else "cpu")
            self.cluster.made += 1
        return seat.here
