"""Hides from JAX that its connection to process 0 was closed, so that this process can report the loss itself.

JAX aborts a process (SIGABRT and a C++ stack) within 0.1 s after this connection is closed, and calls no Python code
before. While the connection seems open, JAX waits for the answer to a heartbeat, and `peer_failure.py` ends the process
with an error sentence and exit code 42 before that.
"""

import ctypes
import os
import socket
import stat
import struct
import sys
from contextlib import suppress
from pathlib import Path

_SO_ATTACH_FILTER = 26  # from asm-generic/socket.h
_FLAGS, _FIN_OR_RST = 13, 0b101  # offset of the flags in a TCP header, and the flags of a packet that closes
# A socket filter (BPF), which reads each arriving packet from its TCP header on: (code, jump if true, jump if false,
# operand). It drops the packets that close the connection. The kernel runs it even while this process is stopped.
_FILTER = (
    (0x30, 0, 0, _FLAGS),  # load the byte at this offset
    (0x45, 0, 1, _FIN_OR_RST),  # if none of these flags is set, skip the next line
    (0x06, 0, 0, 0),  # drop the packet
    (0x06, 0, 0, 0xFFFFFFFF),  # accept the packet
)


def hide_close(port: int) -> None:
    """Makes the kernel drop the packets that close a connection of this process to a remote port. Linux only.

    Elsewhere, and where the kernel refuses the filter (some do so without privileges), JAX aborts this process when
    process 0 ends.
    """
    if not sys.platform.startswith("linux"):
        return
    for descriptor in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):  # closed by another thread, not connected, or no filter allowed
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            with socket.socket(fileno=os.dup(descriptor)) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.getpeername()[1] == port:
                    attach_filter(connection)


def attach_filter(connection: socket.socket) -> None:
    """Makes the kernel drop arriving packets that close a TCP connection."""
    instructions = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    memory = ctypes.create_string_buffer(instructions)  # which the kernel copies
    program = struct.pack("HP", len(_FILTER), ctypes.addressof(memory))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
