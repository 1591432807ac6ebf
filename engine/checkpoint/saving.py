"""One save after the other, written while the loop goes on: started, followed, ended.

Owns: the writer's Orbax manager, and which step is under way. Does not own: the format (`manager.py`), which steps
are there and how one is restored (`store.py`), when a save is due (`policy.py`).

Terms. *Under way*: started, and not known to be durable or failed.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.checkpoint.manager import failing, open_manager, orbax


class Saver:
    """Writes the steps of a run into its directory, one at a time.

    Args:
        directory: where the step directories lie; made if it is missing.
        failed: makes the sentence of a save that failed from the step and the error's words.

    With several processes, all call each method at the same steps.
    """

    def __init__(self, directory: Path, failed: Callable[[int, str], str]):
        self.directory, self._failed = directory, failed
        self._under_way: int | None = None
        self.manager: Any = open_manager(directory)

    def start(self, step: int, state: Any, position: Mapping[str, int], config_text: str) -> None:
        """Starts to write a step, in place of one of that name; none may be under way.

        Raises:
            CheckpointError: it cannot be started.
        """
        ocp = orbax()
        with self._failing(step):
            state = _apart(state)
            if step in self.manager.all_steps():
                self.manager.reload()
            if step in self.manager.all_steps():
                self.manager.delete(step)
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state),
                    position=ocp.args.JsonSave(dict(position)),
                    config=ocp.args.JsonSave({"lines": config_text.split("\n")}),
                ),
                force=True,  # whether it is due was decided by the caller
            )
        self._under_way = step

    def ended(self) -> bool:
        """Whether a save was under way and now waits for `wait`, which will not take long."""
        return self._under_way is not None and not self.manager.is_saving_in_progress()

    def wait(self) -> int | None:
        """Waits until the save under way is durable and returns its step, or None where none was.

        Raises:
            CheckpointError: it failed. It is told once; the next save starts anew.
        """
        step, self._under_way = self._under_way, None
        if step is not None:
            with self._failing(step):
                self.manager.wait_until_finished()
        return step

    def close(self) -> None:
        """Ends the threads of the writer, after what is under way."""
        self.manager.close()

    @contextlib.contextmanager
    def _failing(self, step: int) -> Iterator[None]:
        try:
            with failing(lambda words: self._failed(step, words)):
                yield
        except Exception:
            # A manager whose save failed lists that step and raises the same error for ever.
            with contextlib.suppress(Exception):
                self.manager.close()
            with contextlib.suppress(Exception):
                self.manager = open_manager(self.directory)
            raise


def _apart(state: Any) -> Any:
    """Returns a copy on CPU, whose arrays Orbax reads where they lie: the loop's own stay free to be donated.

    Without it, the next step copies the whole state beside the writer at work, which takes twice as long. On an
    accelerator Orbax itself copies, to the host, before its `save` returns.
    """
    import jax

    if jax.default_backend() != "cpu":
        return state
    return jax.device_put(state, jax.tree.map(lambda x: x.sharding, state), may_alias=False)
