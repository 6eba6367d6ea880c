// Preloaded, it shifts a process's time of day by the seconds in the file $CLOCK_SHIFT (int64, native byte order), which
// may change at any time. As for a clock that is set: the time since the start stays, and waits that end at a time of
// day end later or earlier.
//
//     cc -shared -fPIC -O2 -o clock.so clock.c
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *shift;

__attribute__((constructor)) static void open_shift(void) {
    const char *path = getenv("CLOCK_SHIFT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    if (found == MAP_FAILED) abort();  // a test without its fault must not pass
    shift = found;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int status = syscall(SYS_clock_gettime, clock, now);
    if (shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *shift;
    return status;
}

int gettimeofday(struct timeval *now, void *zone) {
    (void)zone;
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}

// The real end of a wait until a shifted time of day, at most 0.1 s from now, so that a later shift counts.
static struct timespec slice(const struct timespec *end) {
    struct timespec soon, real = {end->tv_sec - (shift ? *shift : 0), end->tv_nsec};
    syscall(SYS_clock_gettime, CLOCK_REALTIME, &soon);
    soon.tv_nsec += 100000000;
    if (soon.tv_nsec >= 1000000000) soon.tv_sec++, soon.tv_nsec -= 1000000000;
    return real.tv_sec < soon.tv_sec || (real.tv_sec == soon.tv_sec && real.tv_nsec < soon.tv_nsec) ? real : soon;
}

static int is_over(const struct timespec *end) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec > end->tv_sec || (now.tv_sec == end->tv_sec && now.tv_nsec >= end->tv_nsec);
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *end) {
    // a condition may count from the machine's start instead, which was not thirty years ago
    if (end->tv_sec < 1000000000) return pthread_cond_clockwait(condition, mutex, CLOCK_MONOTONIC, end);
    struct timespec part = slice(end);
    int status = pthread_cond_clockwait(condition, mutex, CLOCK_REALTIME, &part);
    return status == ETIMEDOUT && !is_over(end) ? 0 : status;  // callers expect to be woken for nothing
}

int sem_timedwait(sem_t *semaphore, const struct timespec *end) {
    for (;;) {
        struct timespec part = slice(end);
        if (sem_clockwait(semaphore, CLOCK_REALTIME, &part) == 0) return 0;
        if (errno != ETIMEDOUT || is_over(end)) return -1;
    }
}

int pthread_mutex_timedlock(pthread_mutex_t *mutex, const struct timespec *end) {
    for (;;) {
        struct timespec part = slice(end);
        int status = pthread_mutex_clocklock(mutex, CLOCK_REALTIME, &part);
        if (status != ETIMEDOUT || is_over(end)) return status;
    }
}
