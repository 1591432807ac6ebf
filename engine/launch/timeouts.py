"""Every timeout of the launchers, in seconds, with the reason for its size."""

from typing import Final

FAILURE_GRACE_S: Final = 5.0  # after the first failure, for the primary to write it to the status of the run
STOPPED_POLL_S: Final = 0.5  # between two checks for stopped processes
STOPPED_NAMED_S: Final = 6.0  # until a stopped process is named; pauses of 5 s are tolerated
STOPPED_S: Final = 30.0  # until it is ended; the others of a training end earlier, since its heartbeats are missing
TIDY_S: Final = 2.0  # for workers to end after their process
STOP_GRACE_S: Final = 120  # from SIGTERM to SIGKILL in a pod or service, for the step in flight and a checkpoint
RESTART_S: Final = 15  # wait of the service on a TPU VM: all hosts must have ended before one restarts
SLURM_NOTICE_S: Final = (
    180  # from SIGTERM to the time limit; Slurm may send SIGTERM up to a minute earlier, never later
)
SLURM_KILL_S: Final = 60  # from the end of the first task until Slurm kills the others
SIGNAL_POLL_S: Final = 0.05  # between two checks for a signal during a wait
FIRST_RESTART_S: Final = 1.0  # before the first restart; it doubles with each restart without progress
LONGEST_RESTART_S: Final = 60.0  # upper limit of that wait, so that a recovered cluster is used soon
