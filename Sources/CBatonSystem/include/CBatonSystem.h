// System calls, CRC32C and thread start that Swift's Glibc module lacks or cannot express.
#ifndef CBATONSYSTEM_H
#define CBATONSYSTEM_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/// CRC32C (Castagnoli) of `length` bytes continued from `seed` (0 to begin). Uses SSE4.2 or ARMv8 CRC where the CPU has it.
uint32_t baton_crc32c(uint32_t seed, const void *bytes, size_t length);

/// The same by table, for tests that compare both.
uint32_t baton_crc32c_software(uint32_t seed, const void *bytes, size_t length);

/// CRC32C of A followed by B, from the CRCs of both and B's length.
uint32_t baton_crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b);

/// Starts a joinable thread named `name` (15 characters at most are kept). Returns 0 or an errno. The body gets `context`.
int baton_thread_start(const char *name, void (*body)(void *), void *context, uint64_t *thread_out);

/// Waits for a thread of `baton_thread_start` to end.
int baton_thread_join(uint64_t thread);

/// fallocate(2) without FALLOC_FL_KEEP_SIZE. Returns 0 or an errno.
int baton_fallocate(int fd, int64_t offset, int64_t length);

/// fallocate(2) with FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE. Returns 0 or an errno.
int baton_punch_hole(int fd, int64_t offset, int64_t length);

/// syncfs(2). Returns 0 or an errno.
int baton_syncfs(int fd);

/// open(2) with O_CLOEXEC. Returns a descriptor, or the negated errno.
int baton_open(const char *path, int flags, unsigned int mode);

/// Takes an exclusive flock(2) without waiting. Returns 0 or an errno (EWOULDBLOCK when another process has it).
int baton_flock_exclusive(int fd);

/// Free bytes for unprivileged users, total bytes and free inodes of the file system that holds `path`. Returns 0 or an errno.
int baton_disk_space(const char *path, uint64_t *free_bytes, uint64_t *total_bytes, uint64_t *free_inodes);

/// Fills `buffer` from getrandom(2); aborts where the kernel has no randomness, since nothing safe can follow.
void baton_random(void *buffer, size_t length);

/// Nanoseconds of CLOCK_REALTIME and of CLOCK_MONOTONIC.
int64_t baton_clock_realtime(void);
int64_t baton_clock_elapsed(clockid_t clock);
int64_t baton_clock_monotonic(void);

/// User plus system CPU time of the process in microseconds.
uint64_t baton_process_cpu_microseconds(void);

/// Resident set size of this process in bytes, 0 if unknown.
uint64_t baton_resident_bytes(void);

/// The soft limit of open files; raises it to the hard limit first.
uint64_t baton_raise_file_limit(void);

/// Offset of the first byte of `bytes` that is CR, LF or NUL; `length` if none.
size_t baton_find_crlf_nul(const uint8_t *bytes, size_t length);

/// Offset of the first byte with the high bit set; `length` if none.
size_t baton_find_high_bit(const uint8_t *bytes, size_t length);

/// Offset of the first `needle` in `bytes` (memmem(3)), -1 if there is none.
long baton_find(const void *bytes, size_t length, const void *needle, size_t needle_length);

/// Tells glibc to give freed memory back to the kernel.
void baton_release_free_memory(void);

/// Keeps glibc's allocator near what is in use: few arenas, large blocks by mmap whatever was freed before. Once, before threads.
void baton_bound_allocator(void);

/// Bytes that are free inside the allocator and resident or not.
long baton_allocator_free(void);

#endif
