"""Every timeout of this package, in seconds or as a factor, with the reason for its value."""

from typing import Final

# The watchdog.
TIMES_MEDIAN: Final = 5.0  # a step may take so many times the median step
PATIENCE: Final = 10.0  # times `resilience.hang`: for the first step, a batch of an evaluation, a hook, and the end
STORAGE_MARGIN_S: Final = 60.0  # beyond twice `checkpoint.timeout`, at which a save or restore itself fails
WATCHDOG_POLL_S: Final = 1.0  # longest time between two polls; a tenth of `resilience.hang` if that is less
WATCHDOG_LONGEST_POLL_S: Final = 2.0  # in a large run (`kv_store.poll_period`); less than STACKS_S
UNANSWERED_POLLS: Final = 5  # an overdue process no longer waits for the decision of process 0 after so many
STACKS_S: Final = 5.0  # for the stacks of all processes to arrive

# Signals.
START_GRACE_S: Final = 5.0  # from a signal to the end of a run without steps to save; a pod may be killed after 15 s
SAME_SIGNAL_S: Final = 0.1  # a terminal and a launcher may both forward one Ctrl-C: copies within this time count once
