/* The wall clock as Python sees it, moved by as many seconds as a file says, which may change at any moment. With
   CONVOY_TEST_CLOCK_ALL also the monotonic clock, as libfaketime moves it.

   Preloaded into a process (LD_PRELOAD). Only calls that come from the interpreter are answered so: compiled libraries
   add a timeout to the wall clock and wait in the kernel for that moment, and the kernel's own clock does not jump here,
   which would make a fault that no real jump makes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *offset;
static int moves_all;
static int (*real_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void load(void) { real_clock = dlsym(RTLD_NEXT, "clock_gettime"); }

/* When the first time is asked for, since a program of the tests may get its variables after its start. */
static void begin(void) {
  const char *path = getenv("CONVOY_TEST_CLOCK");
  moves_all = getenv("CONVOY_TEST_CLOCK_ALL") != NULL;
  int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *map = mmap(NULL, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
  close(file);
  if (map != MAP_FAILED) offset = map;
}

static int64_t moved(void *caller) {
  Dl_info info;
  if (!offset) begin();
  if (!offset || !dladdr(caller, &info) || !info.dli_fname) return 0;
  const char *name = strrchr(info.dli_fname, '/');
  name = name ? name + 1 : info.dli_fname;
  return !strncmp(name, "python", 6) || !strncmp(name, "libpython", 9) ? *offset : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int code = real_clock(clock, now);
  if (!offset) begin();
  if (!code && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE || (moves_all && clock == CLOCK_MONOTONIC)))
    now->tv_sec += moved(__builtin_return_address(0));
  return code;
}

time_t time(time_t *out) {
  struct timespec now;
  real_clock(CLOCK_REALTIME, &now);
  time_t seconds = now.tv_sec + moved(__builtin_return_address(0));
  if (out) *out = seconds;
  return seconds;
}

int gettimeofday(struct timeval *restrict out, void *restrict zone) {
  (void)zone;
  struct timespec now;
  real_clock(CLOCK_REALTIME, &now);
  out->tv_sec = now.tv_sec + moved(__builtin_return_address(0));
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}
