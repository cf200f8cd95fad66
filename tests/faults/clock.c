/* Preloaded into every part of a stack: its wall clock is the real one plus the seconds in CLOCK_OFFSET_FILE
   (a native double), read at each call, so that all processes jump together. The monotonic clock is left
   alone, as when a real host's clock is set. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile double *offset;

static void __attribute__((constructor)) open_offset(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int descriptor = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (descriptor < 0) return;
    void *memory = mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, descriptor, 0);
    if (memory != MAP_FAILED) offset = memory;
    close(descriptor);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && offset && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        double whole = floor(*offset);
        now->tv_sec += (time_t)whole;
        now->tv_nsec += (long)((*offset - whole) * 1e9);
        if (now->tv_nsec >= 1000000000L) { now->tv_sec += 1; now->tv_nsec -= 1000000000L; }
    }
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec precise;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &precise);
    now->tv_sec = precise.tv_sec;
    now->tv_usec = precise.tv_nsec / 1000;
    return result;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
