"""Every bound on a wait of this package, in seconds, with the reason for its size."""

from typing import Final

# Joining. Hosts of one job may start minutes apart.
JOIN_S: Final = 300.0
JOIN_JAX_S: Final = 30.0  # for JAX's own part, once all processes have called the rendezvous
HOSTNAME_S: Final = 30.0  # a pod runs some seconds before its own name resolves
RENDEZVOUS_ANSWER_S: Final = 10.0  # beyond the time limit, for the answer of process 0 to arrive
RENDEZVOUS_RETRY_S: Final = 0.1  # between attempts to connect

# Exchanges in the process group.
AGREE_S: Final = 600.0  # the slowest start beside the fastest: data is listed, programs are loaded
CONSISTENCY_S: Final = 300.0  # hosts that import from a cold disk may be minutes behind others
VERDICT_S: Final = 10.0  # beyond the time limit of a gather, for the primary's verdict to arrive
SLICE_S: Final = 1.0  # of a wait inside JAX: Python's signal handlers and cancellation get their turn between slices
GATHER_POLL_S: Final = 0.01  # between reads of all keys of a gather: processes that arrive together cost one read
REQUEST_POLL_S: Final = 0.5  # a signal handler can only set a flag, which the thread of an agreement reads so often

# Failures of peers.
HEARTBEAT_S: Final = 10  # twice what a paused virtual machine or a full disk takes
PEER_POLL_S: Final = 1.0  # between two checks for a failed peer
MAIN_THREAD_S: Final = 2.0  # for the main thread, which knows more, to report the same failure itself
FAREWELL_S: Final = 3.0  # the store ends with process 0, which leaves the others so long to read the reason
FAREWELL_EXIT_S: Final = 0.5  # from having read it to the exit: without process 0 a peer would end by SIGABRT

# The end.
LEAVE_S: Final = 120.0  # at the end of the run, for the last files of the primary
LEAVE_LAST_S: Final = 30.0  # for the others to disconnect before process 0 does
LAST_ACTS_S: Final = 8.0  # for all last acts of a process together: storage may hang
THREADS_S: Final = 3.0  # for threads that are still at work, such as a data reader that waits for its source
