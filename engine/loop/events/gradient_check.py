"""Gradient check: a neighbour repeats the gradient of each device's rows, to detect arithmetic that is silently wrong.

The replica check compares copies of the state, which a mesh of fsdp alone does not have. This check compares what two
devices compute from the same parameters and rows, before any collective mixes their results.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.base.duration import Duration, Period
from engine.base.errors import ConvoyError
from engine.cluster.exit_status import ExitStatus
from engine.compile.local_gradient import FIELD, LocalGradients, Suspects
from engine.compile.program import Program
from engine.data.batch import Batch
from engine.loop.events.event import Boundary
from engine.loop.phases import Phase
from engine.observe.recorder import Recorder

SHOWN = 3  # arrays that an error names
SECONDS = "gradient_check_s"
CHECKING = Phase("checking gradients", "evaluation", "long", outside_rates=True)


class GradientError(ConvoyError):
    """Two devices compute different gradients from the same rows: one of them is faulty. The state is not saved."""

    exit_code = ExitStatus.RETRY
    everywhere = True


@dataclass(eq=False)
class CheckGradients:
    """Compares the gradient of the rows of each device with that of its neighbour, for the newest batch."""

    program: Program
    period: Period
    read_batch: Callable[[int], Batch]
    """Returns a batch by its number, once more."""
    recorder: Recorder
    phase = CHECKING
    ends_dispatch = True
    runs_at_end = True

    def __post_init__(self):
        self._gradients: LocalGradients | None = None
        self._passed = 0

    def next_step(self, after: int) -> float:
        return self.period.next_after(after)

    def run(self, boundary: Boundary) -> None:
        """
        Raises:
            GradientError: they differ. Its text names the devices and their processes.
        """
        start, step = time.monotonic(), boundary.step
        self._gradients = gradients = self._gradients or LocalGradients(self.program)
        if suspects := gradients.suspects(boundary.state, self.read_batch(max(0, step - 1))):
            raise GradientError(_text(self.program, step, self._passed, suspects))
        self._passed = step
        self.recorder.note(step, {SECONDS: time.monotonic() - start})


def gradient_checks(
    program: Program,
    period: Period,
    read_batch: Callable[[int], Batch],
    recorder: Recorder,
    say: Callable[[str], None],
) -> list[CheckGradients]:
    """Returns the event of the check; none on a single device, which has no neighbour."""
    if program.mesh.size == 1:
        say(f"warning: {FIELD}: one device has no neighbour that could repeat its gradient. Nothing is checked.")
        return []
    return [CheckGradients(program, period, read_batch, recorder)]


def description(every: Duration, devices: int) -> str:
    """Returns the line of `convoy explain`."""
    if devices == 1:
        return "gradient check: not possible, one device has no neighbour"
    return f"gradient check: every {every}, each of {devices} devices computes two gradients of a microbatch for it"


def _text(program: Program, step: int, passed: int, suspects: Suspects) -> str:
    devices = list(program.mesh.devices.flat)
    odd = sorted({position for positions in suspects.values() for position in positions})
    named = ", ".join(f"device {devices[i].id} of process {devices[i].process_index}" for i in odd)
    more = f" and {len(suspects) - SHOWN} more" if len(suspects) > SHOWN else ""
    problem = f"{named} computed another one than two other devices" if len(odd) == 1 else f"one of {named} is wrong"
    since = f"step {passed}, where the last check passed," if passed else "the start of this attempt"
    return (
        f"step {step}: devices computed different gradients of {', '.join(list(suspects)[:SHOWN])}{more} from the same "
        f"rows: {problem}. The arithmetic or memory of a device is faulty. This state was not saved, but checkpoints "
        f"since {since} may have the error. Test that device or exclude its machine, and set such checkpoints aside."
    )
