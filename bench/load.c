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
 * The first byte on a connection says what the client wants: 's' a stream, 't' to send one, of which the
 * server tells with a byte that it is ready and again for each MiB that it has taken, anything else an echo.
 * Behind the length 1, in four bytes, 's' and 't' mean the same in messages with such a length before each.
 */

#include "load.h"

#include <sys/epoll.h>
#include <sys/uio.h>
#include <sys/un.h>

#define ADDRESSES 16
#define BACKLOG 4096
#define ANSWER_BYTES 4096
#define TURNS 8                 /* sends or reads before the server's other connections have their turn */
#define HEAD_BYTES 4            /* of a framed message: its length, big endian */
#define TOLD_BYTES (1024 * 1024) /* the server tells whenever it has taken so many */

/* -- addresses ------------------------------------------------------------------------------------ */

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

enum role { LISTENS, NEW, ECHOES, STREAMS, TAKES };

static struct served {
    enum role role;
    int framed;
    size_t phase;     /* of the pattern: the next byte to send or to take */
    size_t head, left; /* of the message under way: bytes of its head that are through, bytes of the rest to come */
    unsigned char heads[HEAD_BYTES];
    size_t taken;     /* since it was told */
} *served; /* by descriptor */
static size_t served_size;
static int epoll;

static void watch(int fd, enum role role, int operation)
{
    struct epoll_event event = {.events = role == STREAMS ? EPOLLOUT : EPOLLIN, .data.fd = fd};
    if ((size_t)fd >= served_size)
        die("descriptor %d: only %zu are expected", fd, served_size);
    served[fd] = (struct served){.role = role};
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

static int tell(int fd)
{
    static const unsigned char message[] = {0, 0, 0, 1, 'k'};
    size_t skipped = served[fd].framed ? 0 : HEAD_BYTES, length = sizeof message - skipped;
    return send(fd, message + skipped, length, MSG_NOSIGNAL) == (ssize_t)length;
}

/* Begin what the first bytes ask for, if it is no echo. Return -1 where it is one, else as echo does. */
static int begin(int fd, const unsigned char *data, size_t count)
{
    static const unsigned char one[HEAD_BYTES] = {0, 0, 0, 1};
    int framed = count == HEAD_BYTES + 1 && memcmp(data, one, HEAD_BYTES) == 0;
    int wanted = data[framed ? HEAD_BYTES : 0];
    if (wanted != 's' && wanted != 't')
        return -1;
    watch(fd, wanted == 's' ? STREAMS : TAKES, EPOLL_CTL_MOD);
    served[fd].framed = framed;
    return wanted == 's' || tell(fd);
}

/* Return false when the connection is over. */
static int echo(int fd)
{
    static unsigned char data[64 * 1024];
    int begun = -1;
    ssize_t count = recv(fd, data, sizeof data, 0);
    if (count < 0)
        return errno == EAGAIN;
    if (count == 0)
        return 0;
    if (served[fd].role == NEW)
        begun = begin(fd, data, (size_t)count);
    if (begun >= 0)
        return begun;
    served[fd].role = ECHOES;
    return send(fd, data, (size_t)count, MSG_NOSIGNAL) == count;
}

static int stream(int fd)
{
    struct served *s = &served[fd];
    for (int i = 0; i < TURNS; i++) {
        uint32_t length = htonl(CHUNK_BYTES);
        struct iovec parts[2];
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
        if (s->left == 0)
            s->head = s->framed ? 0 : HEAD_BYTES, s->left = CHUNK_BYTES;
        parts[0] = (struct iovec){(unsigned char *)&length + s->head, HEAD_BYTES - s->head};
        parts[1] = (struct iovec){pattern + s->phase, s->left};
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN;
        size_t of_head = (size_t)sent < HEAD_BYTES - s->head ? (size_t)sent : HEAD_BYTES - s->head;
        size_t of_rest = (size_t)sent - of_head;
        s->head += of_head, s->left -= of_rest;
        s->phase = (s->phase + of_rest) % PERIOD_BYTES;
    }
    return 1;
}

/* Compare what has come with what has to; return false where it is wrong, or the connection over. */
static int take(int fd)
{
    static unsigned char data[CHUNK_BYTES];
    struct served *s = &served[fd];
    for (int i = 0; i < TURNS; i++) {
        ssize_t count = recv(fd, data, sizeof data, 0);
        if (count < 0)
            return errno == EAGAIN;
        if (count == 0)
            return 0;
        for (size_t at = 0; at < (size_t)count;) {
            size_t part = (size_t)count - at;
            if (s->framed && s->left == 0) {
                s->heads[s->head++] = data[at++];
                if (s->head == HEAD_BYTES) {
                    uint32_t length;
                    memcpy(&length, s->heads, sizeof length);
                    s->head = 0, s->left = ntohl(length);
                }
                continue;
            }
            if (s->framed && part > s->left)
                part = s->left;
            if (memcmp(data + at, pattern + s->phase, part) != 0)
                return 0;
            s->phase = (s->phase + part) % PERIOD_BYTES;
            s->left -= s->framed ? part : 0;
            s->taken += part, at += part;
        }
        for (; s->taken >= TOLD_BYTES; s->taken -= TOLD_BYTES)
            if (!tell(fd))
                return 0;
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
            else if (!(served[fd].role == STREAMS ? stream(fd) : served[fd].role == TAKES ? take(fd) : echo(fd)))
                close(fd);
        }
    }
}

/* -- opening a connection ------------------------------------------------------------------------- */

static struct { int brokered; const char *at; int port; const char *uri; } how;

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

/* -- the command line ----------------------------------------------------------------------------- */

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
