"""Every timeout of this package, in seconds, with the reason for its value."""

from typing import Final

# Joining. Hosts of one job may start minutes apart.
JOIN_S: Final = 300.0
JOIN_JAX_S: Final = 30.0  # for JAX's own part, once all processes have called the rendezvous
JOIN_EACH_S: Final = 0.005  # in addition, for each process: six times what process 0 needs to register it
HOSTNAME_S: Final = 30.0  # a pod runs some seconds before its own name resolves
RENDEZVOUS_ANSWER_S: Final = 10.0  # beyond the timeout, for the answer of process 0 to arrive
RENDEZVOUS_CLOSE_S: Final = 2.0  # for all other processes to close their connections once they have the answer
RENDEZVOUS_RETRY_S: Final = 0.1  # between attempts to connect; longer in a large run

# Exchanges in the process group.
AGREE_S: Final = 600.0  # difference between the slowest and the fastest start: listing data, loading programs
CONSISTENCY_S: Final = 300.0  # hosts that import from a cold disk may be minutes behind others
VERDICT_S: Final = 10.0  # beyond the timeout of a gather, for the primary's verdict to arrive
SLICE_S: Final = 1.0  # one slice of a wait inside JAX: signal handlers and cancellation run between slices
LONGEST_SLICE_S: Final = 10.0  # the same in a large run
GATHER_POLL_S: Final = 0.01  # between the first two reads of all keys of a gather; later reads are further apart
GATHER_GROWTH: Final = 0.25  # share of its time so far that a gather waits until it reads all keys again
GATHER_READS: Final = 4.0  # times the duration of the latest read of all keys, until the next one
WAITING_S: Final = 0.2  # until the primary publishes the processes that it waits for, for errors of the others
REQUEST_POLL_S: Final = 0.5  # a signal handler can only set a flag, which the thread of an agreement polls
LONGEST_REQUEST_POLL_S: Final = 4.0  # the same in a large run; schedulers often kill 30 s after the signal

# Failures of peers.
# More than twice the 5 s for which a paused virtual machine or a full disk delays a process; longer in a large run
# (`peer_failure.heartbeat_s`).
HEARTBEAT_S: Final = 12
PEER_POLL_S: Final = 1.0  # between two checks for a failed peer; longer in a large run
# For the answer of process 0 to such a check: longer than the same 5 s, and the process must end before JAX aborts it,
# which happens 1 s plus half the timeout of heartbeats after a heartbeat without an answer.
COORDINATOR_S: Final = 5.25
COORDINATOR_SUSPECT_S: Final = 1.5  # if a collective has failed, which is immediate if process 0 was killed
COORDINATOR_POLL_S: Final = 0.1
LONGEST_PROBE_S: Final = 8.0  # between two probes whether process 0 answers, in a large run
LONGEST_HEARTBEAT_POLL_S: Final = 10.0  # for heartbeats, in a large run
POLLING_PROCESSES: Final = 250  # with more processes than this, each of them polls less often (`kv_store.poll_period`)
CANCELLED_S: Final = 0.05  # until a request that was cancelled is repeated; doubles with each attempt
LONGEST_CANCELLED_S: Final = 2.0  # likewise, at most
VERDICT_READ_S: Final = 86_400.0  # of one read of the first verdict, which a process repeats until there is one
MAIN_THREAD_S: Final = 2.0  # for the main thread, which knows more, to report the same failure itself
PEERS_READ_S: Final = 3.0  # process 0, which hosts the store, waits so long for its peers to read its verdict
PEERS_EXIT_S: Final = 0.5  # and so long for them to exit afterwards: without process 0 a peer would get SIGABRT

# The end.
LEAVE_S: Final = 120.0  # at the end of the run, for the last files of the primary
LEAVE_LAST_S: Final = 30.0  # for the others to disconnect before process 0 does
EXIT_CALLBACKS_S: Final = 8.0  # for all exit callbacks of a process together: storage may hang
THREADS_S: Final = 3.0  # for threads that are still running, such as a data reader that waits for its source

# Output.
CALLER_WAITS_S: Final = 0.05  # for a line to be written, so that it comes before what the process does next
UNREAD_S: Final = 1.0  # at the end, for a stream whose reader does not read
DRAIN_S: Final = 5.0  # at the end, for a stream whose reader is slow
READS_S: Final = 0.2  # for a reader that does read, after a request to stop
JOIN_POLL_S: Final = 0.05  # between two checks whether a wait for a reader may end
IDLE_S: Final = 1.0  # until the thread of a stream without output ends
