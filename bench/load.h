/* What the programs of the benchmark share: what is compared, addresses, threads that begin at one moment. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CHUNK_BYTES (128 * 1024)
#define PERIOD_BYTES 65537 /* a prime: no buffer's size divides it, so a lost or repeated buffer shows */
#define MESSAGE_BYTES 64
#define PATIENCE_SECONDS 10   /* a connection that stands still for so long is a failure */
#define WARM_UP 0.2           /* this part of a stream's time is not counted: windows still grow */

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static double now_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* What a stream carries: pseudo-random bytes, over and over. A chunk may be read at any phase. */
static unsigned char pattern[PERIOD_BYTES + CHUNK_BYTES];

static void fill_pattern(void)
{
    uint32_t x = 2463534242u; /* xorshift32, Marsaglia 2003 */
    for (size_t i = 0; i < PERIOD_BYTES; i++) {
        x ^= x << 13, x ^= x >> 17, x ^= x << 5;
        pattern[i] = (unsigned char)x;
    }
    for (size_t i = PERIOD_BYTES; i < sizeof pattern; i++)
        pattern[i] = pattern[i - PERIOD_BYTES];
}

/* -- addresses ------------------------------------------------------------------------------------ */

static struct sockaddr_in tcp_address(const char *host, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        die("%s: wanted an IPv4 address", host);
    return address;
}

/* -- connections and clients ---------------------------------------------------------------------- */

static void prepare(int fd)
{
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

static pthread_barrier_t all_ready;
static double seconds, count_from, count_until;
static long most;
static atomic_long begun, done;

/* Run clients until all have ended; return what they have done a second. */
static double run(void *(*client)(void *), long clients, double uncounted)
{
    pthread_t threads[clients];
    pthread_barrier_init(&all_ready, NULL, (unsigned)clients + 1);
    for (long i = 0; i < clients; i++)
        if (pthread_create(&threads[i], NULL, client, (void *)i) != 0)
            die("cannot start %ld threads", clients);
    pthread_barrier_wait(&all_ready);
    double start = now_seconds();
    count_from = start + uncounted;
    count_until = start + seconds;
    pthread_barrier_wait(&all_ready);
    for (long i = 0; i < clients; i++)
        pthread_join(threads[i], NULL);
    return (double)atomic_load(&done) / (now_seconds() - count_from);
}

static double number(const char *text, double least, double greatest)
{
    char *end;
    double value = strtod(text, &end);
    if (*text == 0 || *end != 0 || !(value >= least && value <= greatest))
        die("%s: wanted a number from %g to %g", text, least, greatest);
    return value;
}

static int is(const char *word, int count, int wanted, char **words)
{
    return count == wanted && strcmp(words[1], word) == 0;
}
