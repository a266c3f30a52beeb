// A disk that can lose power, fill up and fail: preloaded (LD_PRELOAD) into the server under test.
//
// kill -9 leaves the kernel's page cache as it is, so it proves nothing about what was synced. For
// every regular file below DISK_SHIM_DIR that is opened for writing (not "*-shm", which SQLite maps
// and rebuilds) this library therefore writes down, before each write and truncate, what was there
// before: in DISK_SHIM_UNDO, one file per inode. A successful sync of the file empties its undo
// file. After the process is gone the test applies what is left backwards: that is the disk after a
// power cut. A new file's name lasts once its directory was synced; until then there is a marker
// "new-<inode of the directory>/<inode>". Removing and renaming are taken as lasting at once.
//
// DISK_SHIM_CONTROL is a file of `struct control`, shared with the test, which rewrites it while the
// server runs. All real calls are raw system calls: the library needs nothing but libc and threads.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { NO_SPACE = 0, SYNC_FAILS, SYNC_IGNORED, SYNC_MS, WRITE_FAILS, SYNC_HELD };
enum { NO_WRITES = 1, NO_GROWTH = 2 };           // values of NO_SPACE
enum { FAILS_ALWAYS = 1, FAILS_ONCE_THEN_LIES }; // values of SYNC_FAILS: the latter is what Linux does
#define BLOCK 4096

struct control {
    _Atomic uint8_t set[8];
    _Atomic uint32_t cut_after; // SIGKILL at so many writes, truncates and syncs from now; 0: never
    _Atomic uint32_t waiting;   // syncs that are held at the moment
    _Atomic uint64_t syncs;     // syncs that succeeded
    _Atomic uint64_t writes;    // writes that were let through
};

// An entry of an undo file, followed by `kept` old bytes from `offset` on.
struct entry {
    uint64_t offset, old_length, written, kept;
};

#define MAX_FD (1 << 16)
static _Atomic int undo_of[MAX_FD]; // 0: not watched; otherwise the undo file's descriptor
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct control none, *control = &none;
static char dir[PATH_MAX];
static size_t dir_length;
static const char *undo_dir;

static long real_open(int at, const char *path, int flags, mode_t mode) {
    return syscall(SYS_openat, at, path, flags, mode);
}

static _Noreturn void broken(const char *what) {
    dprintf(STDERR_FILENO, "disk shim: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static void start(void) {
    const char *watched = getenv("DISK_SHIM_DIR"), *path = getenv("DISK_SHIM_CONTROL");
    undo_dir = getenv("DISK_SHIM_UNDO");
    if (!watched || !path || !undo_dir || !realpath(watched, dir)) return;
    int fd = (int)real_open(AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    void *map = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) broken("control file");
    syscall(SYS_close, fd);
    control = map;
    dir_length = strlen(dir);
}

static int undo_file(int fd) { return fd >= 0 && fd < MAX_FD ? undo_of[fd] : 0; }

// Whether fd is below the watched directory, or is that directory.
static bool is_below(int fd, char path[PATH_MAX]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (dir_length == 0 || length < (ssize_t)dir_length) return false;
    path[length] = 0;
    return memcmp(path, dir, dir_length) == 0 && (path[dir_length] == '/' || path[dir_length] == 0);
}

static off_t length_of(int fd) {
    struct stat found;
    if (fstat(fd, &found)) broken("fstat");
    return found.st_size;
}

// The power goes here, if it was to go now: after this the test applies the undo files.
static void count_down(void) {
    if (control->cut_after && --control->cut_after == 0) {
        syscall(SYS_kill, getpid(), SIGKILL);
        for (;;) pause();
    }
}

// Writes down what `length` bytes at `offset` were and how long the file was.
static void remember(int fd, off_t offset, size_t written, size_t reach) {
    off_t old_length = length_of(fd);
    size_t kept = offset >= old_length ? 0 : (size_t)(old_length - offset);
    if (kept > reach) kept = reach;
    char *block = malloc(sizeof(struct entry) + kept);
    if (!block) broken("malloc");
    struct entry entry = {(uint64_t)offset, (uint64_t)old_length, written, kept};
    memcpy(block, &entry, sizeof entry);
    for (size_t done = 0; done < kept;) {
        ssize_t n = pread(fd, block + sizeof entry + done, kept - done, offset + (off_t)done);
        if (n <= 0) broken("pread");
        done += (size_t)n;
    }
    // One call: a kill leaves a whole entry or a piece at the end, which is ignored, for then the
    // write itself was not made.
    ssize_t n = syscall(SYS_write, undo_file(fd), block, sizeof entry + kept);
    if (n != (ssize_t)(sizeof entry + kept)) broken("undo file");
    free(block);
}

static ssize_t watched_write(int fd, const void *bytes, size_t count, off_t at, bool moves) {
    pthread_mutex_lock(&lock);
    count_down();
    off_t room = (length_of(fd) + BLOCK - 1) / BLOCK * BLOCK;
    int error = 0;
    if (control->set[WRITE_FAILS]) {
        error = EIO;
    } else if (control->set[NO_SPACE] == NO_WRITES || (control->set[NO_SPACE] == NO_GROWTH && at >= room)) {
        error = ENOSPC;
    } else if (control->set[NO_SPACE] == NO_GROWTH && at + (off_t)count > room) {
        count = (size_t)(room - at); // what still fits into the last block is written
    }
    ssize_t done = -1;
    if (!error) {
        remember(fd, at, count, count);
        done = moves ? syscall(SYS_write, fd, bytes, count) : syscall(SYS_pwrite64, fd, bytes, count, at);
        error = done < 0 ? errno : 0;
        control->writes++;
    }
    pthread_mutex_unlock(&lock);
    if (error) errno = error;
    return done;
}

static int watched_truncate(int fd, off_t length) {
    pthread_mutex_lock(&lock);
    count_down();
    off_t old = length_of(fd);
    int error = 0, done = -1;
    if (control->set[WRITE_FAILS]) error = EIO;
    else if (control->set[NO_SPACE] && length > old) error = ENOSPC;
    if (!error) {
        remember(fd, length < old ? length : old, 0, SIZE_MAX);
        done = (int)syscall(SYS_ftruncate, fd, length);
        error = done < 0 ? errno : 0;
    }
    pthread_mutex_unlock(&lock);
    if (error) errno = error;
    return done;
}

// The names in a directory last from now on.
static void names_last(int fd) {
    struct stat found;
    if (fstat(fd, &found) || !S_ISDIR(found.st_mode)) return;
    // The directory of markers is renamed away as a whole: one step, like the sync itself.
    char markers[PATH_MAX], gone[PATH_MAX];
    static unsigned number;
    snprintf(markers, sizeof markers, "%s/new-%ju", undo_dir, (uintmax_t)found.st_ino);
    snprintf(gone, sizeof gone, "%s/gone-%d-%u", undo_dir, (int)getpid(), number++);
    rename(markers, gone);
}

static int sync_file(int fd, long call) {
    char path[PATH_MAX];
    int undo = undo_file(fd);
    if (!undo && !is_below(fd, path)) return (int)syscall(call, fd);
    if (control->set[SYNC_HELD]) {
        control->waiting++;
        while (control->set[SYNC_HELD]) nanosleep(&(struct timespec){0, 1000000}, NULL);
        control->waiting--;
    }
    nanosleep(&(struct timespec){0, control->set[SYNC_MS] * 1000000L}, NULL);
    pthread_mutex_lock(&lock);
    count_down();
    int done = 0, error = 0;
    if (control->set[SYNC_FAILS]) {
        error = EIO, done = -1;
        // The kernel tells of a lost page once, and the next sync succeeds without it.
        if (control->set[SYNC_FAILS] == FAILS_ONCE_THEN_LIES) {
            control->set[SYNC_IGNORED] = 1;
            control->set[SYNC_FAILS] = 0;
        }
    } else if (!control->set[SYNC_IGNORED]) {
        done = (int)syscall(call, fd);
        error = done < 0 ? errno : 0;
        if (!done && undo) syscall(SYS_ftruncate, undo, 0);
        if (!done && !undo) names_last(fd);
        control->syncs++;
    }
    pthread_mutex_unlock(&lock);
    if (error) errno = error;
    return done;
}

// Begins to watch a file that was opened for writing.
static void watch(int fd, bool is_new) {
    char path[PATH_MAX], name[PATH_MAX];
    struct stat file, parent;
    if (fd >= MAX_FD || !is_below(fd, path) || fstat(fd, &file) || !S_ISREG(file.st_mode)) return;
    size_t length = strlen(path);
    if (length > 4 && strcmp(path + length - 4, "-shm") == 0) return;
    pthread_mutex_lock(&lock);
    if (snprintf(name, sizeof name, "%s/%ju", undo_dir, (uintmax_t)file.st_ino) >= PATH_MAX) broken("path");
    // An inode's number may have been another file's before.
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (is_new ? O_TRUNC : 0);
    int undo = (int)real_open(AT_FDCWD, name, flags, 0600);
    if (undo < 0) broken("undo file");
    if (is_new) {
        *strrchr(path, '/') = 0;
        if (stat(path, &parent)) broken("stat");
        if (snprintf(name, sizeof name, "%s/new-%ju", undo_dir, (uintmax_t)parent.st_ino) >= PATH_MAX) broken("path");
        mkdir(name, 0700);
        snprintf(name, sizeof name, "%s/new-%ju/%ju", undo_dir, (uintmax_t)parent.st_ino, (uintmax_t)file.st_ino);
        int marker = (int)real_open(AT_FDCWD, name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (marker < 0) broken("marker");
        syscall(SYS_close, marker);
    }
    undo_of[fd] = undo;
    pthread_mutex_unlock(&lock);
}

static int open_file(int at, const char *path, int flags, mode_t mode) {
    pthread_once(&once, start);
    bool writes = (flags & O_ACCMODE) != O_RDONLY && !(flags & O_PATH) && dir_length > 0;
    if (!writes) return (int)real_open(at, path, flags, mode);
    // The old bytes have to be read; and a truncation is made below, where it is written down.
    int wanted = (flags & O_ACCMODE) == O_WRONLY ? (flags & ~O_ACCMODE) | O_RDWR : flags;
    bool is_new = (flags & O_CREAT) && faccessat(at, path, F_OK, 0) != 0;
    int fd = (int)real_open(at, path, wanted & ~O_TRUNC, mode);
    if (fd < 0 && wanted != flags) fd = (int)real_open(at, path, flags & ~O_TRUNC, mode);
    if (fd < 0) return fd;
    watch(fd, is_new);
    struct stat found;
    if ((flags & O_TRUNC) && fstat(fd, &found) == 0 && S_ISREG(found.st_mode)) {
        int failed = undo_file(fd) ? watched_truncate(fd, 0) : (int)syscall(SYS_ftruncate, fd, (off_t)0);
        if (failed) return close(fd), -1;
    }
    return fd;
}

#define MODE(flags, last)                                 \
    mode_t mode = 0;                                      \
    if ((flags) & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
        va_list args;                                     \
        va_start(args, last);                             \
        mode = va_arg(args, mode_t);                      \
        va_end(args);                                     \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_file(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_file(AT_FDCWD, path, flags, mode);
}

int openat(int at, const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_file(at, path, flags, mode);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE(flags, flags)
    return open_file(at, path, flags, mode);
}

int close(int fd) {
    int undo = undo_file(fd);
    if (undo) {
        undo_of[fd] = 0;
        syscall(SYS_close, undo);
    }
    return (int)syscall(SYS_close, fd);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    if (!undo_file(fd)) return syscall(SYS_pwrite64, fd, bytes, count, at);
    return watched_write(fd, bytes, count, at, false);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

ssize_t write(int fd, const void *bytes, size_t count) {
    if (!undo_file(fd)) return syscall(SYS_write, fd, bytes, count);
    bool appends = fcntl(fd, F_GETFL) & O_APPEND;
    return watched_write(fd, bytes, count, appends ? length_of(fd) : lseek(fd, 0, SEEK_CUR), true);
}

int ftruncate64(int fd, off64_t length) {
    return undo_file(fd) ? watched_truncate(fd, length) : (int)syscall(SYS_ftruncate, fd, length);
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

// What is allocated cannot be undone here, and growth is all it is for: callers fall back to writing.
int fallocate64(int fd, int mode, off64_t at, off64_t count) {
    if (!undo_file(fd)) return (int)syscall(SYS_fallocate, fd, mode, at, count);
    errno = control->set[NO_SPACE] ? ENOSPC : EOPNOTSUPP;
    return -1;
}

int fallocate(int fd, int mode, off_t at, off_t count) { return fallocate64(fd, mode, at, count); }

int fsync(int fd) { return sync_file(fd, SYS_fsync); }

int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }
