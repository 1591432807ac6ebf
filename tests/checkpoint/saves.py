"""A checkpointer for tests that saves on request and keeps every step."""

from engine.checkpoint.checkpointer import Checkpointer
from engine.checkpoint.policy import Retention, SavePolicy
from engine.checkpoint.store import CheckpointStore
from engine.run.lease import ALWAYS_GRANTED, Lease, LeaseLost

POSITION = {"next_batch": 3, "next_example": 24}
CONFIG = "name: digits\ntrain.total: 3 epochs\n"
ALL = 10**9


class Saves:
    """A checkpointer that also has the methods of its store.

    Args:
        directory: of the step directories.
    """

    def __init__(self, directory):
        store = CheckpointStore(directory, ALWAYS_GRANTED)
        policy, retention = SavePolicy(None, 8, 8, ALL), Retention(directory, ALL)
        self.checkpoints = Checkpointer(store, policy, retention, CONFIG, on_failure="stop")

    def __getattr__(self, name):
        return getattr(self.checkpoints.store, name)

    def save(self, step, state):
        return self.checkpoints.maybe_save(step, state, POSITION, force=True)

    def wait(self):
        self.checkpoints.settle()

    def poll(self):
        self.checkpoints.poll()

    def close(self):
        with self.checkpoints:
            self.wait()


class LostLease(Lease):
    """The lease of a job whose run directory another job has taken over."""

    def __init__(self, lost=True):
        self.lost = lost

    def verify(self):
        if self.lost:
            raise LeaseLost("another job has taken over this run.")
