"""Exit codes: the one table that the command line, launchers, batch scripts and JobSet rules read.

| code | name        | means                                                        | restarted |
|------|-------------|--------------------------------------------------------------|-----------|
| 0    | DONE        | the run reached its end                                      | no        |
| 1    | USER_ERROR  | a config, a file or the author's code is wrong; the same again would fail again | no |
| 42   | RETRY       | preempted (the state is saved), a lost peer, a hang: start me again | yes       |
| 43   | STOP        | do not retry: the engine itself decided to end the run       | no        |
| 130  | INTERRUPTED | the user pressed Ctrl-C                                      | never     |

A process that was killed from outside ends with 128 + the signal (`KILLED`). It is restarted, unless a rank's recorded
verdict is USER_ERROR or STOP, which is then the job's code.
"""

DONE = 0
USER_ERROR = 1
RETRY = 42
STOP = 43
INTERRUPTED = 130

MEANING = {
    DONE: "done",
    USER_ERROR: "the user's error",
    RETRY: "start me again",
    STOP: "do not retry",
    INTERRUPTED: "interrupted by the user",
}

KILLED = {
    134: "killed by SIGABRT",
    137: "killed by SIGKILL",
    139: "killed by SIGSEGV",
    143: "killed by SIGTERM",
}


def describe(code: int) -> str:
    """Returns what an exit code means, in words."""
    return MEANING.get(code) or KILLED.get(code) or f"exit code {code}, which is not the engine's"


def is_retried(code: int) -> bool:
    """Whether a supervisor starts the run again after this code."""
    return code == RETRY or code in KILLED
