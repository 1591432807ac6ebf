"""A disk that is slow or hangs: a library that `LD_PRELOAD` puts in front of libc, and a file of rules for it.

It delays real calls of any code in a process: Python's, TensorStore's, a linker's. It does not see memory maps and
system calls that bypass libc. Only paths below one folder are affected.

A rule is a line `PROCESS KIND SECONDS`. PROCESS is CONVOY_PROCESS_ID or `*`. KIND is `write` (write, pwrite, fsync,
open for writing, mkdir, rename) or `read` (read, pread, open for reading). SECONDS is a delay of each call, or `hang`,
which lasts until the rule is removed.
"""

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
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

/* Delay of this kind of call by the rules: -1 is a hang, else microseconds. Raw system calls only. */
static long delay_of(const char *kind) {
    const char *path = getenv("CONVOY_TEST_DISK"), *process = getenv("CONVOY_PROCESS_ID");
    char text[512], who[32], what[32], how[32];
    if (!path) return 0;
    long file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    long size = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    text[size > 0 ? size : 0] = 0;
    for (char *line = text; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : 0)
        if (sscanf(line, "%31s %31s %31s", who, what, how) == 3 && !strcmp(what, kind)
            && (!strcmp(who, "*") || (process && !strcmp(who, process))))
            return strcmp(how, "hang") ? (long)(atof(how) * 1e6) : -1;
    return 0;
}

static void hold(const char *path, const char *kind) {
    const char *folder = getenv("CONVOY_TEST_DISK_FOLDER");
    int saved = errno;
    if (folder && path && !strncmp(path, folder, strlen(folder))) {
        long delay = delay_of(kind);
        while (delay < 0) { usleep(20000); delay = delay_of(kind); }
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


@functools.cache
def _library() -> Path:
    """Compiles the library, once for all disks."""
    folder = Path(tempfile.mkdtemp(prefix="convoy-disk-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    command = [shutil.which("cc") or "cc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", folder / "disk.so", "-ldl"]
    subprocess.run(command, input=_SOURCE, text=True, check=True, capture_output=True)
    return folder / "disk.so"


class Disk:
    """The disk below one folder, for processes that run with `environment`.

    Args:
        work: folder for the file of rules; not below `folder`.
        folder: the folder whose files are slow or hang.
    """

    def __init__(self, work: Path, folder: Path):
        self._rules = work / "rules"
        self._rules.write_text("")
        self.environment: dict[str, Any] = {
            "LD_PRELOAD": str(_library()),
            "CONVOY_TEST_DISK": str(self._rules),
            "CONVOY_TEST_DISK_FOLDER": f"{folder}{os.sep}",
        }

    def set_rules(self, *rules: str) -> None:
        """Replaces all rules, such as "* write 2" or "1 read hang"; without a rule the disk is as fast as it is."""
        new = self._rules.with_suffix(".new")
        new.write_text("".join(f"{rule}\n" for rule in rules))
        new.replace(self._rules)


def has_compiler() -> bool:
    """Returns whether this machine has a C compiler, which `Disk` needs."""
    return shutil.which("cc") is not None
