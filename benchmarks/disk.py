"""A disk that is slow or hangs: a library between a program and the C library, told what to do while it runs.

Owns: the library, which `LD_PRELOAD` puts before libc in every process of a command, and the file that commands it.
Real system calls are delayed or held back, of any code in the process: Python's, TensorStore's, a linker's. Nothing of
the engine is changed or knows. What is not held back: memory maps, and calls that do not go through libc.

A line of the file is `RANK KIND SECONDS`: RANK is CONVOY_PROCESS_ID or `*`; KIND is `write` (what changes files: write,
pwrite, fsync, open for writing, mkdir, rename) or `read` (read, pread, open for reading); SECONDS is a delay of each
call, or `hang` for as long as the line stands. Only paths below one folder count.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* What the file of commands says of this kind of call: -1 hang, else microseconds. Raw system calls only. */
static long told(const char *kind) {
    const char *path = getenv("CONVOY_TEST_DISK"), *rank = getenv("CONVOY_PROCESS_ID");
    char text[512], who[32], what[32], how[32];
    if (!path) return 0;
    long file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    long size = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    text[size > 0 ? size : 0] = 0;
    for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : 0)
        if (sscanf(line, "%31s %31s %31s", who, what, how) == 3 && !strcmp(what, kind)
            && (!strcmp(who, "*") || (rank && !strcmp(who, rank))))
            return strcmp(how, "hang") ? (long)(atof(how) * 1e6) : -1;
    return 0;
}

static void hold(const char *path, const char *kind) {
    const char *folder = getenv("CONVOY_TEST_DISK_FOLDER");
    int saved = errno;
    if (folder && path && !strncmp(path, folder, strlen(folder))) {
        long delay = told(kind);
        while (delay < 0) { usleep(20000); delay = told(kind); }
        if (delay > 0) usleep(delay);
    }
    errno = saved;
}

static void hold_fd(int fd, const char *kind) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size > 0) { path[size] = 0; hold(path, kind); }
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FD(type, name, kind, params, ...) type name params { hold_fd(fd, kind); return REAL(name)(__VA_ARGS__); }
#define ON_PATH(type, name, params, ...) type name params { hold(path, "write"); return REAL(name)(__VA_ARGS__); }

ON_FD(ssize_t, write, "write", (int fd, const void *b, size_t n), fd, b, n)
ON_FD(ssize_t, writev, "write", (int fd, const struct iovec *v, int n), fd, v, n)
ON_FD(ssize_t, pwrite, "write", (int fd, const void *b, size_t n, off_t o), fd, b, n, o)
ON_FD(ssize_t, pwrite64, "write", (int fd, const void *b, size_t n, off64_t o), fd, b, n, o)
ON_FD(ssize_t, pwritev, "write", (int fd, const struct iovec *v, int n, off_t o), fd, v, n, o)
ON_FD(ssize_t, pwritev64, "write", (int fd, const struct iovec *v, int n, off64_t o), fd, v, n, o)
ON_FD(int, fsync, "write", (int fd), fd)
ON_FD(int, fdatasync, "write", (int fd), fd)
ON_FD(ssize_t, read, "read", (int fd, void *b, size_t n), fd, b, n)
ON_FD(ssize_t, pread, "read", (int fd, void *b, size_t n, off_t o), fd, b, n, o)
ON_FD(ssize_t, pread64, "read", (int fd, void *b, size_t n, off64_t o), fd, b, n, o)
ON_FD(ssize_t, preadv, "read", (int fd, const struct iovec *v, int n, off_t o), fd, v, n, o)
ON_FD(ssize_t, preadv64, "read", (int fd, const struct iovec *v, int n, off64_t o), fd, v, n, o)
ON_PATH(int, mkdir, (const char *path, mode_t m), path, m)
ON_PATH(int, mkdirat, (int d, const char *path, mode_t m), d, path, m)
ON_PATH(int, rename, (const char *path, const char *to), path, to)
ON_PATH(int, renameat, (int d, const char *path, int e, const char *to), d, path, e, to)

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        hold(path, flags & (O_WRONLY | O_RDWR | O_CREAT) ? "write" : "read"); \
        return REAL(name)(path, flags, mode); }
#define OPENAT(name) \
    int name(int d, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        hold(path, flags & (O_WRONLY | O_RDWR | O_CREAT) ? "write" : "read"); \
        return REAL(name)(d, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
"""


class Disk:
    """The disk below one folder, for commands that get `environment`.

    Args:
        work: where the library and its file of commands lie; not below `folder`.
        folder: whose files are slow or hang.
    """

    def __init__(self, work: Path, folder: Path):
        self._commands, library = work / "commands", work / "disk.so"
        self._commands.write_text("")
        compiler = shutil.which("cc") or "cc"
        command = [compiler, "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", str(library), "-ldl"]
        subprocess.run(command, input=_SOURCE, text=True, check=True, capture_output=True)
        self.environment: dict[str, Any] = {
            "LD_PRELOAD": str(library),
            "CONVOY_TEST_DISK": str(self._commands),
            "CONVOY_TEST_DISK_FOLDER": f"{folder}{os.sep}",
        }

    def does(self, *lines: str) -> None:
        """From now on the disk does this, as "* write 2" or "1 read hang"; nothing without a line."""
        beside = self._commands.with_suffix(".new")
        beside.write_text("".join(f"{line}\n" for line in lines))
        beside.replace(self._commands)


def can_be_made() -> bool:
    """Whether this machine has a C compiler."""
    return shutil.which("cc") is not None
