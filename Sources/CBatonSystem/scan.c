// CRC32C by instruction or table, and the two byte scans of the SMTP hot path, written so that the compiler vectorises them.
#include "CBatonSystem.h"

#include <stdatomic.h>
#include <string.h>

#define POLYNOMIAL 0x82f63b78u

static uint32_t table[8][256];
static atomic_int table_ready;

static void build_table(void) {
    // Idempotent, so that two threads building it at once write the same values.
    if (atomic_load_explicit(&table_ready, memory_order_acquire)) return;
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >> 1) ^ POLYNOMIAL : crc >> 1;
        table[0][n] = crc;
    }
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = table[0][n];
        for (int k = 1; k < 8; k++) {
            crc = table[0][crc & 0xff] ^ (crc >> 8);
            table[k][n] = crc;
        }
    }
    atomic_store_explicit(&table_ready, 1, memory_order_release);
}

uint32_t baton_crc32c_software(uint32_t seed, const void *bytes, size_t length) {
    build_table();
    const uint8_t *next = bytes;
    uint32_t crc = ~seed;
    while (length > 0) {
        crc = table[0][(crc ^ *next++) & 0xff] ^ (crc >> 8);
        length--;
    }
    return ~crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>
__attribute__((target("sse4.2"))) static uint32_t crc32c_hardware(uint32_t seed, const uint8_t *next, size_t length) {
    uint64_t crc = (uint32_t)~seed;
    while (length >= 8) {
        uint64_t word;
        memcpy(&word, next, 8);
        crc = _mm_crc32_u64(crc, word);
        next += 8;
        length -= 8;
    }
    uint32_t rest = (uint32_t)crc;
    while (length > 0) {
        rest = _mm_crc32_u8(rest, *next++);
        length--;
    }
    return ~rest;
}
static int has_hardware(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
__attribute__((target("+crc"))) static uint32_t crc32c_hardware(uint32_t seed, const uint8_t *next, size_t length) {
    uint32_t crc = ~seed;
    while (length >= 8) {
        uint64_t word;
        memcpy(&word, next, 8);
        crc = __crc32cd(crc, word);
        next += 8;
        length -= 8;
    }
    while (length > 0) {
        crc = __crc32cb(crc, *next++);
        length--;
    }
    return ~crc;
}
static int has_hardware(void) { return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0; }
#else
static uint32_t crc32c_hardware(uint32_t seed, const uint8_t *next, size_t length) {
    return baton_crc32c_software(seed, next, length);
}
static int has_hardware(void) { return 0; }
#endif

uint32_t baton_crc32c(uint32_t seed, const void *bytes, size_t length) {
    static atomic_int hardware = -1;
    int known = atomic_load_explicit(&hardware, memory_order_relaxed);
    if (known < 0) {
        known = has_hardware() ? 1 : 0;
        atomic_store_explicit(&hardware, known, memory_order_relaxed);
    }
    return known ? crc32c_hardware(seed, bytes, length) : baton_crc32c_software(seed, bytes, length);
}

// Appending k zero bits is a linear map over GF(2); squaring the matrix doubles k (the method of zlib's crc32_combine).
static uint32_t times(const uint32_t *matrix, uint32_t vector) {
    uint32_t sum = 0;
    while (vector) {
        if (vector & 1) sum ^= *matrix;
        vector >>= 1;
        matrix++;
    }
    return sum;
}

static void square(uint32_t *result, const uint32_t *matrix) {
    for (int n = 0; n < 32; n++) result[n] = times(matrix, matrix[n]);
}

uint32_t baton_crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b) {
    if (length_b == 0) return crc_a;
    uint32_t even[32], odd[32];
    odd[0] = POLYNOMIAL;
    uint32_t row = 1;
    for (int n = 1; n < 32; n++, row <<= 1) odd[n] = row;
    square(even, odd);
    square(odd, even);
    do {
        square(even, odd);
        if (length_b & 1) crc_a = times(even, crc_a);
        length_b >>= 1;
        if (length_b == 0) break;
        square(odd, even);
        if (length_b & 1) crc_a = times(odd, crc_a);
        length_b >>= 1;
    } while (length_b != 0);
    return crc_a ^ crc_b;
}

size_t baton_find_crlf_nul(const uint8_t *bytes, size_t length) {
    size_t offset = 0;
    while (length - offset >= 64) {
        uint8_t found = 0;
        for (int n = 0; n < 64; n++) {
            uint8_t byte = bytes[offset + n];
            found |= (uint8_t)((byte == '\r') | (byte == '\n') | (byte == 0));
        }
        if (found) break;
        offset += 64;
    }
    while (offset < length) {
        uint8_t byte = bytes[offset];
        if (byte == '\r' || byte == '\n' || byte == 0) break;
        offset++;
    }
    return offset;
}

size_t baton_find_high_bit(const uint8_t *bytes, size_t length) {
    size_t offset = 0;
    while (length - offset >= 64) {
        uint8_t found = 0;
        for (int n = 0; n < 64; n++) found |= bytes[offset + n];
        if (found & 0x80) break;
        offset += 64;
    }
    while (offset < length && !(bytes[offset] & 0x80)) offset++;
    return offset;
}
