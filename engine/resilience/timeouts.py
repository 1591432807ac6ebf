"""Every bound on a wait of this package, in seconds or as a factor, with the reason for its size."""

from typing import Final

# The watchdog.
TIMES_MEDIAN: Final = 5.0  # a step may take so many times the median step
PATIENCE: Final = 10.0  # times `resilience.hang`: for the first step, a batch of an evaluation, a hook, and the end
STORAGE_MARGIN_S: Final = 60.0  # beyond twice `checkpoint.timeout`, at which a save or restore itself gives up
WATCHDOG_POLL_S: Final = 1.0  # the longest time between two checks; a tenth of `resilience.hang` where that is less
STACKS_S: Final = 5.0  # for the stacks of all processes to arrive

# Signals.
SAME_SIGNAL_S: Final = 0.1  # a terminal and a launcher may both pass on one Ctrl-C: copies within this time are one

# The supervisor.
FIRST_RESTART_S: Final = 1.0  # before the first restart; it doubles with each restart without progress
LONGEST_RESTART_S: Final = 60.0  # but not beyond this, so that a cluster that recovers is used soon
