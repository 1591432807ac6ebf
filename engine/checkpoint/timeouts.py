"""Every timeout of this package, in seconds, with the reason for its value."""

from typing import Final

SAVE_S: Final = 600.0  # for a save or a restore: the default of checkpoint.timeout
VERDICT_S: Final = 30.0  # beyond the deadline of a save, for the primary's verdict to reach the other processes
VERIFY_SHARE: Final = 0.9  # share of a restore's timeout for hashing: ends before the restore, to name a late process
READ_S: Final = 86400.0  # for all processes to read the arrays of a bucket; a restore ends before, at its own timeout
VERIFY_S: Final = 600.0  # for hashing all files of a step, outside of a restore

RECENT_S: Final = 1.0  # a younger save is waited for: it ends soon, and a run with short steps saves more often
FROZEN_S: Final = 60.0  # likewise, for the frozen parameters of a run, so that its first steps are saved
ABANDONED_S: Final = 1.0  # for the thread of an abandoned save to return before the next save is refused
ALONE_S: Final = 5.0  # for the save in flight when this process alone fails: its peers may never finish theirs

LIST_S: Final = 10.0  # for listing or renaming steps: a healthy folder answers in milliseconds
DELETE_S: Final = 60.0  # at the end of a run, for deletions in flight; the next writer completes the rest
RESULTS_S: Final = 2.0  # for writing results.json, during which the loop waits; a later write repeats it
PROGRESS_S: Final = 1.0  # between two progress lines of `convoy checkpoints verify`
