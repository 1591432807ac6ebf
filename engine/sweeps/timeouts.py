"""Time limits of sweeps, in seconds."""

from typing import Final

POLL_S: Final = 0.05  # between two polls of the runs by the driver
RAY_POLL_S: Final = 0.2  # the same on a Ray cluster, whose answers arrive in threads
CLUSTER_POLL_S: Final = 2.0  # the same on a cluster, whose scheduler every poll asks
SCHEDULER_S: Final = 600.0  # that a scheduler may fail to answer before the driver ends
FLOPS_S: Final = 600.0  # for a child to build the program of a run and count its FLOPs
MEMORY_POLL_S: Final = 1.0  # between two checks of the free memory of this machine
DECISION_S: Final = 15.0  # that a trial waits for the decision of the driver; longer than a save of its storage takes
DECISION_POLL_S: Final = 0.02
STOP_S: Final = 120.0  # for the runs to save and end after a signal to the driver
