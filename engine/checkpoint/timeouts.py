"""Every bound on a wait of this package, in seconds, with the reason for its size."""

from typing import Final

SAVE_S: Final = 600.0  # for a save or a restore, where the caller names no other: the default of checkpoint.timeout
VERDICT_S: Final = 30.0  # beyond the deadline of a save, for the primary's verdict to reach the other processes
VERIFY_SHARE: Final = 0.9  # of the time of a restore, for hashing: before the caller's own bound, to name who is late
VERIFY_S: Final = 600.0  # for hashing all files of a step, where nothing else bounds it

RECENT_S: Final = 1.0  # a save younger than this is waited for: it ends soon, and a run with short steps saves more
ABANDONED_S: Final = 1.0  # for the thread of an abandoned save to return before the next save is refused
ALONE_S: Final = 5.0  # for the save in flight when this process alone fails: its peers may never finish theirs

LIST_S: Final = 10.0  # for listing or renaming steps: a healthy folder answers in milliseconds
DELETE_S: Final = 60.0  # at the end, for deletions in flight; the next writer finishes what is left
RESULTS_S: Final = 2.0  # that the loop waits for the disk to take results.json, which a later write repeats
PROGRESS_S: Final = 1.0  # between two progress lines of `convoy checkpoints verify`
