/* Preloaded into a process: counts its calls that change files below a folder, and at a chosen one
   kills the process, tears the write, or reports a full disk. Knows nothing about what is written. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_AFTER, TEAR, FULL_ONCE, FULL_FROM };

static char folder[PATH_MAX];
static size_t folder_length;
static atomic_long calls;
static long at;
static int mode;

void crash_arm(const char *below, long nth, int what) {
    mode = COUNT;
    strncpy(folder, below, sizeof folder - 1);
    folder_length = strlen(folder);
    atomic_store(&calls, 0);
    at = nth;
    mode = what;
}
void crash_disarm(void) { folder_length = 0; }
long crash_calls(void) { return atomic_load(&calls); }

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static int is_below(int directory, const char *path) {
    char full[2 * PATH_MAX], link[64];
    if (!folder_length || !path) return 0;
    if (path[0] == '/') return !strncmp(path, folder, folder_length);
    ssize_t n;
    if (directory == AT_FDCWD) {
        if (!getcwd(full, PATH_MAX)) return 0;
        n = strlen(full);
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
        if ((n = readlink(link, full, PATH_MAX - 1)) < 0) return 0;
    }
    snprintf(full + n, PATH_MAX, "/%s", path);
    return !strncmp(full, folder, folder_length);
}

static int is_open_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!folder_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    return n >= (ssize_t)folder_length && !strncmp(path, folder, folder_length);
}

/* 0: go on; 1: die after the call; 2: tear it; 3: the disk is full */
static int meet(void) {
    long now = atomic_fetch_add(&calls, 1) + 1;
    if (mode == FULL_FROM && now >= at) return 3;
    if (now != at) return 0;
    if (mode == KILL_BEFORE) die();
    return mode == KILL_AFTER ? 1 : mode == TEAR ? 2 : mode == FULL_ONCE ? 3 : 0;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

/* a call that only names what it changes; with a full disk it fails only where it would need room */
#define NAMED(name, needs_room, inside, parameters, arguments, ...) \
    int name parameters { \
        REAL(int, name, __VA_ARGS__); \
        int fate = (inside) ? meet() : 0; \
        if (fate == 3 && (needs_room)) return errno = ENOSPC, -1; \
        int result = real arguments; \
        if (fate == 1 || fate == 2) die(); \
        return result; \
    }

NAMED(fsync, 1, is_open_below(fd), (int fd), (fd), int)
NAMED(fdatasync, 1, is_open_below(fd), (int fd), (fd), int)
NAMED(ftruncate, 1, is_open_below(fd), (int fd, off_t size), (fd, size), int, off_t)
NAMED(ftruncate64, 1, is_open_below(fd), (int fd, off64_t size), (fd, size), int, off64_t)
NAMED(rename, 1, is_below(AT_FDCWD, to), (const char *from, const char *to), (from, to), const char *, const char *)
NAMED(renameat, 1, is_below(b, to), (int a, const char *from, int b, const char *to), (a, from, b, to),
      int, const char *, int, const char *)
NAMED(link, 1, is_below(AT_FDCWD, to), (const char *from, const char *to), (from, to), const char *, const char *)
NAMED(linkat, 1, is_below(b, to), (int a, const char *from, int b, const char *to, int flags),
      (a, from, b, to, flags), int, const char *, int, const char *, int)
NAMED(symlink, 1, is_below(AT_FDCWD, to), (const char *from, const char *to), (from, to), const char *, const char *)
NAMED(unlink, 0, is_below(AT_FDCWD, path), (const char *path), (path), const char *)
NAMED(unlinkat, 0, is_below(d, path), (int d, const char *path, int flags), (d, path, flags), int, const char *, int)
NAMED(rmdir, 0, is_below(AT_FDCWD, path), (const char *path), (path), const char *)
NAMED(mkdir, 1, is_below(AT_FDCWD, path), (const char *path, mode_t m), (path, m), const char *, mode_t)
NAMED(mkdirat, 1, is_below(d, path), (int d, const char *path, mode_t m), (d, path, m), int, const char *, mode_t)

int posix_fallocate(int fd, off_t offset, off_t size) {
    REAL(int, posix_fallocate, int, off_t, off_t);
    int fate = is_open_below(fd) ? meet() : 0;
    if (fate == 3) return ENOSPC;
    int result = real(fd, offset, size);
    if (fate) die();
    return result;
}

ssize_t write(int fd, const void *bytes, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    int fate = is_open_below(fd) ? meet() : 0;
    if (fate == 3) return errno = ENOSPC, -1;
    ssize_t written = real(fd, bytes, fate == 2 ? size / 2 : size);
    if (fate) die();
    return written;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(ssize_t, writev, int, const struct iovec *, int);
    int fate = is_open_below(fd) ? meet() : 0;
    if (fate == 3) return errno = ENOSPC, -1;
    ssize_t written = real(fd, parts, fate == 2 ? (count + 1) / 2 : count);
    if (fate) die();
    return written;
}

ssize_t sendfile(int to, int from, off_t *offset, size_t size) {
    REAL(ssize_t, sendfile, int, int, off_t *, size_t);
    int fate = is_open_below(to) ? meet() : 0;
    if (fate == 3) return errno = ENOSPC, -1;
    ssize_t written = real(to, from, offset, fate == 2 ? size / 2 : size);
    if (fate) die();
    return written;
}

#define OPENED(name, real_call, directory) \
    int fate = (flags & (O_CREAT | O_TRUNC)) && is_below(directory, path) ? meet() : 0; \
    mode_t permission = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list rest; va_start(rest, flags); permission = va_arg(rest, mode_t); va_end(rest); \
    } \
    if (fate == 3) return errno = ENOSPC, -1; \
    int fd = real_call; \
    if (fate) die(); \
    return fd;

int open(const char *path, int flags, ...) {
    REAL(int, open, const char *, int, ...);
    OPENED(open, real(path, flags, permission), AT_FDCWD)
}
int open64(const char *path, int flags, ...) {
    REAL(int, open64, const char *, int, ...);
    OPENED(open64, real(path, flags, permission), AT_FDCWD)
}
int openat(int directory, const char *path, int flags, ...) {
    REAL(int, openat, int, const char *, int, ...);
    OPENED(openat, real(directory, path, flags, permission), directory)
}
int openat64(int directory, const char *path, int flags, ...) {
    REAL(int, openat64, int, const char *, int, ...);
    OPENED(openat64, real(directory, path, flags, permission), directory)
}
