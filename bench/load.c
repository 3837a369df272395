/* Measure connections: a server, and clients that open connections in several ways and check every byte.
 *
 *   load serve [PATH]                          listen on one free port of 127.0.0.1 to 127.0.0.16, and on
 *                                              the UNIX socket PATH; print the port; serve until killed
 *   load stream COUNT SECONDS HOW…             COUNT streams at once, server to client; print bytes/s
 *   load pingpong SECONDS HOW…                 64-byte round trips on one connection; print round trips/s
 *   load setups CLIENTS SECONDS MOST HOW…      CLIENTS at once, each in a loop: open, one round trip, close;
 *                                              for SECONDS, at most MOST in all; print set-ups/s
 *
 *   HOW is  direct HOST PORT                   plain TCP
 *       or  broker SOCKET URI                  ask plumberd on its UNIX socket, and take the descriptor it hands out
 *
 * A "*" in HOST or URI is 1 to 16, each in turn: 127.0.0.* spreads the connections over the server's addresses.
 * The first byte on a connection says what the client wants: 's' a stream, anything else an echo.
 */

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
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define ADDRESSES 16
#define BACKLOG 4096
#define CHUNK_BYTES (128 * 1024)
#define PERIOD_BYTES 65537 /* a prime: no buffer's size divides it, so a lost or repeated buffer shows */
#define MESSAGE_BYTES 64
#define ANSWER_BYTES 4096
#define PATIENCE_SECONDS 10   /* a connection that stands still for so long is a failure */
#define WARM_UP 0.2           /* this part of a stream's time is not counted: windows still grow */
#define SENDS_A_TURN 8        /* before the server's other connections have their turn */

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

static struct sockaddr_un unix_address(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("%s: the path of a UNIX socket holds %zu bytes", path, sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    return address;
}

/* Copy text with its "*" replaced by the turn's number. */
static void spread(char *out, size_t size, const char *text, long turn)
{
    const char *star = strchr(text, '*');
    int written = star == NULL
        ? snprintf(out, size, "%s", text)
        : snprintf(out, size, "%.*s%ld%s", (int)(star - text), text, turn % ADDRESSES + 1, star + 1);
    if (written < 0 || (size_t)written >= size)
        die("%s: too long", text);
}

/* -- the server ----------------------------------------------------------------------------------- */

enum role { LISTENS, NEW, ECHOES, STREAMS };

static struct { enum role role; size_t phase; } *served; /* by descriptor */
static size_t served_size;
static int epoll;

static void watch(int fd, enum role role, int operation)
{
    struct epoll_event event = {.events = role == STREAMS ? EPOLLOUT : EPOLLIN, .data.fd = fd};
    if ((size_t)fd >= served_size)
        die("descriptor %d: only %zu are expected", fd, served_size);
    served[fd].role = role;
    served[fd].phase = 0;
    if (epoll_ctl(epoll, operation, fd, &event) != 0)
        die("epoll_ctl: %s", strerror(errno));
}

static int bind_one(int family, const void *address, socklen_t length)
{
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0)
        die("socket: %s", strerror(errno));
    if (family == AF_INET)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, address, length) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    close(fd);
    return -1;
}

/* Listen on one port of all addresses; return it, or 0 where one of them has it in use. */
static int listen_on_a_port(int fds[ADDRESSES])
{
    int port = 0;
    for (long i = 0; i < ADDRESSES; i++) {
        char host[INET_ADDRSTRLEN];
        spread(host, sizeof host, "127.0.0.*", i);
        struct sockaddr_in address = tcp_address(host, port);
        socklen_t length = sizeof address;
        fds[i] = bind_one(AF_INET, &address, sizeof address);
        if (fds[i] < 0) {
            while (i-- > 0)
                close(fds[i]);
            return 0;
        }
        if (getsockname(fds[i], (struct sockaddr *)&address, &length) != 0)
            die("getsockname: %s", strerror(errno));
        port = ntohs(address.sin_port);
    }
    return port;
}

static void accept_all(int listener)
{
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* fails on a UNIX socket, which has no delay */
        watch(fd, NEW, EPOLL_CTL_ADD);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        die("accept: %s", strerror(errno));
}

/* Return false when the connection is over. */
static int echo(int fd)
{
    char data[4096];
    ssize_t count = recv(fd, data, sizeof data, 0);
    if (count < 0)
        return errno == EAGAIN;
    if (count == 0)
        return 0;
    if (served[fd].role == NEW && data[0] == 's') {
        watch(fd, STREAMS, EPOLL_CTL_MOD);
        return 1;
    }
    served[fd].role = ECHOES;
    return send(fd, data, (size_t)count, MSG_NOSIGNAL) == count;
}

static int stream(int fd)
{
    for (int i = 0; i < SENDS_A_TURN; i++) {
        ssize_t count = send(fd, pattern + served[fd].phase, CHUNK_BYTES, MSG_NOSIGNAL);
        if (count < 0)
            return errno == EAGAIN;
        served[fd].phase = (served[fd].phase + (size_t)count) % PERIOD_BYTES;
    }
    return 1;
}

static void serve(const char *path)
{
    struct rlimit limit;
    struct epoll_event events[256];
    int fds[ADDRESSES], port = 0;
    getrlimit(RLIMIT_NOFILE, &limit);
    served_size = limit.rlim_cur;
    served = calloc(served_size, sizeof *served);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (served == NULL || epoll < 0)
        die("out of memory or descriptors");
    for (int tries = 0; port == 0; tries++) {
        if (tries == 100)
            die("found no port that is free on 127.0.0.1 to 127.0.0.%d", ADDRESSES);
        port = listen_on_a_port(fds);
    }
    for (int i = 0; i < ADDRESSES; i++)
        watch(fds[i], LISTENS, EPOLL_CTL_ADD);
    if (path != NULL) {
        struct sockaddr_un address = unix_address(path);
        int fd = bind_one(AF_UNIX, &address, sizeof address);
        if (fd < 0)
            die("%s: %s", path, strerror(errno));
        watch(fd, LISTENS, EPOLL_CTL_ADD);
    }
    printf("%d\n", port);
    fflush(stdout);
    for (;;) {
        int count = epoll_wait(epoll, events, sizeof events / sizeof *events, -1);
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            if (served[fd].role == LISTENS)
                accept_all(fd);
            else if (!(served[fd].role == STREAMS ? stream(fd) : echo(fd)))
                close(fd);
        }
    }
}

/* -- opening a connection ------------------------------------------------------------------------- */

static struct { int brokered; const char *at; int port; const char *uri; } how;

static void prepare(int fd)
{
    struct timeval patience = {.tv_sec = PATIENCE_SECONDS};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
}

static int open_direct(long turn)
{
    char host[64];
    spread(host, sizeof host, how.at, turn);
    struct sockaddr_in address = tcp_address(host, how.port);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0)
        die("socket: %s", strerror(errno));
    prepare(fd);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connecting to %s:%d: %s", host, how.port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one); /* what plumberd hands out has it set */
    return fd;
}

/* Read one answer of the broker, a 4-byte length and JSON; return the descriptor that came with it. */
static int take_descriptor(int broker)
{
    char answer[ANSWER_BYTES + 1];
    size_t got = 0, wanted = 4;
    int fd = -1;
    while (got < wanted) {
        union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
        struct iovec into = {.iov_base = answer + got, .iov_len = ANSWER_BYTES - got};
        struct msghdr message = {
            .msg_iov = &into, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
        ssize_t count = recvmsg(broker, &message, MSG_CMSG_CLOEXEC);
        if (count <= 0)
            die("the broker does not answer: %s", count == 0 ? "it hung up" : strerror(errno));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
            memcpy(&fd, CMSG_DATA(c), sizeof fd);
        got += (size_t)count;
        if (got >= 4) {
            uint32_t length;
            memcpy(&length, answer, sizeof length);
            wanted = 4 + (size_t)ntohl(length);
            if (wanted > ANSWER_BYTES)
                die("the broker announces an answer of %zu bytes", wanted - 4);
        }
    }
    answer[got] = 0;
    if (fd < 0 || strstr(answer + 4, "\"ok\":true") == NULL)
        die("the broker refuses: %s", answer + 4);
    return fd;
}

/* A connection to the broker for every lookup: so do programs that need one connection. */
static int open_brokered(long turn)
{
    struct sockaddr_un address = unix_address(how.at);
    char uri[256], request[512];
    spread(uri, sizeof uri, how.uri, turn);
    int length = snprintf(request + 4, sizeof request - 4, "{\"op\":\"lookup\",\"uri\":\"%s\"}", uri);
    uint32_t prefix = htonl((uint32_t)length);
    memcpy(request, &prefix, sizeof prefix);
    int broker = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (broker < 0)
        die("socket: %s", strerror(errno));
    prepare(broker);
    if (connect(broker, (struct sockaddr *)&address, sizeof address) != 0)
        die("connecting to %s: %s", how.at, strerror(errno));
    if (send(broker, request, (size_t)length + 4, MSG_NOSIGNAL) != length + 4)
        die("asking the broker: %s", strerror(errno));
    int fd = take_descriptor(broker);
    close(broker);
    prepare(fd);
    return fd;
}

static int open_connection(long turn)
{
    return how.brokered ? open_brokered(turn) : open_direct(turn);
}

/* -- the clients ---------------------------------------------------------------------------------- */

static pthread_barrier_t all_ready;
static double seconds, count_from, count_until;
static long most;
static atomic_long begun, done;

/* Send a message that no other connection sends, and expect it back. */
static void round_trip(int fd, long number)
{
    unsigned char sent[MESSAGE_BYTES], back[MESSAGE_BYTES];
    memcpy(sent, pattern + (number & 0xff), sizeof sent);
    sent[0] = 'e';
    memcpy(sent + 1, &number, sizeof number);
    if (send(fd, sent, sizeof sent, MSG_NOSIGNAL) != sizeof sent)
        die("sending a message: %s", strerror(errno));
    for (size_t got = 0; got < sizeof back;) {
        ssize_t count = recv(fd, back + got, sizeof back - got, 0);
        if (count <= 0)
            die("a message does not come back: %s", count == 0 ? "the connection ended" : strerror(errno));
        got += (size_t)count;
    }
    if (memcmp(sent, back, sizeof sent) != 0)
        die("a message came back changed");
}

static void *receive_stream(void *number)
{
    int fd = open_connection((long)number);
    unsigned char *data = malloc(CHUNK_BYTES);
    size_t phase = 0;
    long counted = 0;
    if (data == NULL)
        die("out of memory");
    pthread_barrier_wait(&all_ready);
    pthread_barrier_wait(&all_ready); /* the clock is set between the two */
    if (send(fd, "s", 1, MSG_NOSIGNAL) != 1)
        die("asking for a stream: %s", strerror(errno));
    for (double now = 0; now < count_until;) {
        ssize_t count = recv(fd, data, CHUNK_BYTES, 0);
        if (count <= 0)
            die("a stream stops: %s", count == 0 ? "the connection ended" : strerror(errno));
        if (memcmp(data, pattern + phase, (size_t)count) != 0)
            die("a stream brings wrong bytes");
        phase = (phase + (size_t)count) % PERIOD_BYTES;
        now = now_seconds();
        if (now >= count_from && now < count_until)
            counted += count;
    }
    atomic_fetch_add(&done, counted);
    close(fd);
    free(data);
    return NULL;
}

static void *play_pingpong(void *number)
{
    int fd = open_connection((long)number);
    long trips = 0;
    round_trip(fd, 0);
    pthread_barrier_wait(&all_ready);
    pthread_barrier_wait(&all_ready);
    while (now_seconds() < count_until)
        round_trip(fd, ++trips);
    atomic_fetch_add(&done, trips);
    close(fd);
    return NULL;
}

static void *open_and_close(void *number)
{
    const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    long turn;
    (void)number;
    pthread_barrier_wait(&all_ready);
    pthread_barrier_wait(&all_ready);
    while (now_seconds() < count_until && (turn = atomic_fetch_add(&begun, 1)) < most) {
        int fd = open_connection(turn);
        round_trip(fd, turn);
        /* Close with a reset: an orderly close leaves the port in TIME_WAIT, and with some ten thousand of
         * those connect() slows down, for every contender and for whoever comes after it. */
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fd);
        atomic_fetch_add(&done, 1);
    }
    return NULL;
}

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

/* -- the command line ----------------------------------------------------------------------------- */

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

int main(int count, char **words)
{
    raise_descriptor_limit();
    fill_pattern();
    signal(SIGPIPE, SIG_IGN);
    if (is("serve", count, 2, words) || is("serve", count, 3, words))
        serve(words[2]);
    if (count >= 5 && strcmp(words[count - 3], "direct") == 0) {
        how.at = words[count - 2];
        how.port = (int)number(words[count - 1], 1, 65535);
    } else if (count >= 5 && strcmp(words[count - 3], "broker") == 0) {
        how.brokered = 1;
        how.at = words[count - 2];
        how.uri = words[count - 1];
    } else {
        die("wanted serve [PATH], or stream|pingpong|setups … direct HOST PORT|broker SOCKET URI; see load.c");
    }
    if (is("stream", count, 7, words)) {
        seconds = number(words[3], 0.01, 3600);
        printf("%.0f\n", run(receive_stream, (long)number(words[2], 1, 256), seconds * WARM_UP));
    } else if (is("pingpong", count, 6, words)) {
        seconds = number(words[2], 0.01, 3600);
        printf("%.0f\n", run(play_pingpong, 1, 0));
    } else if (is("setups", count, 8, words)) {
        seconds = number(words[3], 0.01, 3600);
        most = (long)number(words[4], 1, 1e9);
        printf("%.0f\n", run(open_and_close, (long)number(words[2], 1, 1024), 0));
    } else {
        die("wanted stream COUNT SECONDS, pingpong SECONDS or setups CLIENTS SECONDS MOST in front of %s",
            words[count - 3]);
    }
    return 0;
}
