// Thin wrappers around Linux system calls; every function says in the header what it returns.
#define _GNU_SOURCE
#include "CBatonSystem.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

struct start {
    void (*body)(void *);
    void *context;
    char name[16];
};

static void *run(void *argument) {
    struct start start = *(struct start *)argument;
    free(argument);
    pthread_setname_np(pthread_self(), start.name);
    start.body(start.context);
    return NULL;
}

int baton_thread_start(const char *name, void (*body)(void *), void *context, uint64_t *thread_out) {
    struct start *start = malloc(sizeof *start);
    if (start == NULL) return ENOMEM;
    start->body = body;
    start->context = context;
    strncpy(start->name, name, sizeof start->name - 1);
    start->name[sizeof start->name - 1] = 0;
    pthread_t thread;
    int result = pthread_create(&thread, NULL, run, start);
    if (result != 0) {
        free(start);
        return result;
    }
    *thread_out = (uint64_t)thread;
    return 0;
}

int baton_thread_join(uint64_t thread) { return pthread_join((pthread_t)thread, NULL); }

int baton_fallocate(int fd, int64_t offset, int64_t length) {
    return fallocate(fd, 0, offset, length) == 0 ? 0 : errno;
}

int baton_punch_hole(int fd, int64_t offset, int64_t length) {
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0 ? 0 : errno;
}

int baton_syncfs(int fd) { return syncfs(fd) == 0 ? 0 : errno; }

int baton_open(const char *path, int flags, unsigned int mode) {
    int fd;
    do {
        fd = open(path, flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    return fd >= 0 ? fd : -errno;
}

int baton_flock_exclusive(int fd) { return flock(fd, LOCK_EX | LOCK_NB) == 0 ? 0 : errno; }

int baton_disk_space(const char *path, uint64_t *free_bytes, uint64_t *total_bytes, uint64_t *free_inodes) {
    struct statvfs space;
    if (statvfs(path, &space) != 0) return errno;
    *free_bytes = (uint64_t)space.f_bavail * space.f_frsize;
    *total_bytes = (uint64_t)space.f_blocks * space.f_frsize;
    /* A file system that makes inodes as it goes (btrfs) counts none. */
    *free_inodes = space.f_files == 0 ? UINT64_MAX : (uint64_t)space.f_favail;
    return 0;
}

void baton_random(void *buffer, size_t length) {
    uint8_t *next = buffer;
    while (length > 0) {
        ssize_t got = getrandom(next, length, 0);
        if (got < 0) {
            if (errno == EINTR) continue;
            abort();
        }
        next += got;
        length -= (size_t)got;
    }
}

static int64_t clock_nanoseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

int64_t baton_clock_realtime(void) { return clock_nanoseconds(CLOCK_REALTIME); }
int64_t baton_clock_elapsed(clockid_t clock) { return clock_nanoseconds(clock); }
int64_t baton_clock_monotonic(void) { return clock_nanoseconds(CLOCK_MONOTONIC); }

uint64_t baton_process_cpu_microseconds(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000 +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

uint64_t baton_resident_bytes(void) {
    FILE *file = fopen("/proc/self/statm", "re");
    if (file == NULL) return 0;
    unsigned long total = 0, resident = 0;
    int fields = fscanf(file, "%lu %lu", &total, &resident);
    fclose(file);
    return fields == 2 ? (uint64_t)resident * (uint64_t)sysconf(_SC_PAGESIZE) : 0;
}

uint64_t baton_raise_file_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 0;
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {limit.rlim_max, limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
    }
    return (uint64_t)limit.rlim_cur;
}

long baton_find(const void *bytes, size_t length, const void *needle, size_t needle_length) {
    const char *hit = memmem(bytes, length, needle, needle_length);
    return hit ? hit - (const char *)bytes : -1;
}

void baton_release_free_memory(void) { malloc_trim(0); }

void baton_bound_allocator(void) {
    // An arena keeps what was freed in it, and a node has some fifteen threads.
    mallopt(M_ARENA_MAX, 4);
    // Set by hand, so that freeing a large block does not raise it: bodies go back to the kernel when they are freed.
    mallopt(M_MMAP_THRESHOLD, 192 * 1024);
    mallopt(M_TRIM_THRESHOLD, 4 * 1024 * 1024);
}

long baton_allocator_free(void) {
    struct mallinfo2 info = mallinfo2();
    return (long)info.fordblks;
}
