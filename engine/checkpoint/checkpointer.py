"""When the loop saves, and what stays: the store, the policy and the retention behind one method.

Owns: the order (a step is saved once, older ones go only after it is durable). Does not own: how a step is written
(`store.py`), when it is due (`policy.py`), or which one is kept (`retention.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

from engine.checkpoint.policy import SavePolicy
from engine.checkpoint.retention import Retention
from engine.checkpoint.store import CheckpointStore


class Checkpointer:
    """Saves by a policy and keeps by a retention.

    Args:
        store: where steps lie.
        policy: which steps are due.
        retention: which steps stay.
        config_text: the resolved config, stored with each step.
        may_write: called before anything is written; raises where this job may not any more.
    """

    def __init__(
        self,
        store: CheckpointStore,
        policy: SavePolicy,
        retention: Retention,
        config_text: str,
        may_write: Callable[[], None] = lambda: None,
    ):
        self.store, self.policy, self.retention = store, policy, retention
        self._config_text, self._may_write = config_text, may_write

    def maybe_save(self, step: int, state: Any, position: Mapping[str, Any], force: bool = False) -> bool:
        """Starts a save when one is due or forced; returns whether it did. Raises what an earlier save failed with."""
        self.store.check()
        due = self.policy.due(step)  # asked at every step, in every process
        if not (due or force):
            return False
        self._may_write()
        self.finish()
        return self.store.save(step, state, position, self._config_text)

    def record(self, step: int, results: Mapping[str, float]) -> None:
        """Writes evaluation results beside a step, for retention and for the list of checkpoints."""
        self._may_write()
        self.retention.record(step, results)

    def results(self, step: int) -> Mapping[str, float]:
        """The evaluation results of a step, from this attempt or an earlier one."""
        return self.retention.results(step)

    def finish(self) -> None:
        """Waits until the last save is durable, then drops what need not stay."""
        self.store.wait()
        for step in self.retention.to_delete(self.store.steps()):
            self.store.delete(step)
