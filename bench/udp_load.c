/* The client and the server of bench/udp.py: they send datagrams, count them, and do nothing else.

   udp_load serve PATH                          print a UDP port; serve there, and packets on a UNIX socket at PATH
   udp_load echo SECONDS WINDOW SIZE WAY        messages a second there and back, WINDOW of them under way
   udp_load oneway SECONDS SIZE WAY             messages a second that arrive, sent as fast as it goes
   udp_load percent SECONDS RATE SIZE WAY       of RATE messages a second, how many of a hundred arrive

   WAY: direct ADDRESS PORT  or  broker PATH URI, a lookup on plumberd's native socket for a SOCK_SEQPACKET.
   A message begins with its kind: e is sent back, s is counted, q asks for the count, z sets it to zero. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { LONGEST = 65536, MOST_CLIENTS = 64, FEW_MS = 200 };

static void die(const char *form, ...)
{
    va_list args;
    va_start(args, form);
    vfprintf(stderr, form, args);
    va_end(args);
    fprintf(stderr, errno ? ": %s\n" : "\n", strerror(errno));
    exit(1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static struct sockaddr_un unix_address(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("a path that is too long: %s", path);
    strcpy(address.sun_path, path);
    return address;
}

/* -- the server */

static unsigned long counted;

static ssize_t answer(char *message, ssize_t length)
{
    switch (length > 0 ? message[0] : 0) {
    case 'e':
        return length;
    case 's':
        counted++;
        return 0;
    case 'z':
        counted = 0;
        return length;
    case 'q':
        return 1 + sprintf(message + 1, "%lu", counted);
    default:
        return 0;
    }
}

static void serve(const char *path)
{
    static char buffer[LONGEST];
    struct pollfd polled[2 + MOST_CLIENTS];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_un there = unix_address(path);
    socklen_t size = sizeof here;
    int room = 8 << 20, count = 2;
    int udp = socket(AF_INET, SOCK_DGRAM, 0), listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);

    if (bind(udp, (void *)&here, sizeof here) || getsockname(udp, (void *)&here, &size))
        die("bind");
    setsockopt(udp, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    if (bind(listener, (void *)&there, sizeof there) || listen(listener, 64))
        die("listen on %s", path);
    printf("%d\n", ntohs(here.sin_port));
    fflush(stdout);
    polled[0] = (struct pollfd){.fd = udp, .events = POLLIN};
    polled[1] = (struct pollfd){.fd = listener, .events = POLLIN};
    for (;;) {
        if (poll(polled, count, -1) < 0)
            die("poll");
        for (int turn = 0; polled[0].revents && turn < 256; turn++) {
            struct sockaddr_in from;
            socklen_t length = sizeof from;
            ssize_t got = recvfrom(udp, buffer, sizeof buffer, MSG_DONTWAIT, (void *)&from, &length);
            if (got < 0)
                break;
            ssize_t said = answer(buffer, got);
            if (said > 0)
                sendto(udp, buffer, said, 0, (void *)&from, length);
        }
        for (int at = 2; at < count; at++) {
            for (int turn = 0; polled[at].revents && turn < 256; turn++) {
                ssize_t got = recv(polled[at].fd, buffer, sizeof buffer, MSG_DONTWAIT);
                if (got == 0 || (got < 0 && errno != EAGAIN)) {
                    close(polled[at].fd);
                    polled[at--] = polled[--count];
                    break;
                }
                ssize_t said = got > 0 ? answer(buffer, got) : -1;
                if (said < 0)
                    break;
                if (said > 0)
                    send(polled[at].fd, buffer, said, MSG_NOSIGNAL);
            }
        }
        if (polled[1].revents && count < 2 + MOST_CLIENTS)
            polled[count++] = (struct pollfd){.fd = accept(listener, NULL, NULL), .events = POLLIN};
    }
}

/* -- the client */

static int by_broker(const char *path, const char *uri)
{
    char request[1024], reply[4096], space[CMSG_SPACE(sizeof(int))];
    struct sockaddr_un address = unix_address(path);
    int length = snprintf(request + 4, sizeof request - 4, "{\"op\":\"lookup\",\"type\":\"seqpacket\",\"uri\":\"%s\"}", uri);
    int broker = socket(AF_UNIX, SOCK_STREAM, 0), fd = -1;
    uint32_t big = htonl(length);
    struct iovec part = {reply, sizeof reply};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};

    memcpy(request, &big, 4);
    if (connect(broker, (void *)&address, sizeof address) || write(broker, request, length + 4) != length + 4)
        die("asking %s", path);
    ssize_t got = recvmsg(broker, &message, 0);
    struct cmsghdr *control = CMSG_FIRSTHDR(&message);
    errno = 0;
    if (got <= 4 || control == NULL)
        die("the broker refuses: %.*s", (int)(got > 4 ? got - 4 : 0), reply + 4);
    memcpy(&fd, CMSG_DATA(control), sizeof fd);
    close(broker);
    return fd;
}

static int directly(const char *host, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int fd = socket(AF_INET, SOCK_DGRAM, 0), room = 8 << 20;
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1 || connect(fd, (void *)&address, sizeof address))
        die("connecting to %s:%s", host, port);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &room, sizeof room);
    return fd;
}

static void wait_at_most(int fd, int ms)
{
    struct timeval time = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
}

/* Ask until there is an answer; what else comes is passed over. */
static unsigned long ask(int fd, char kind)
{
    static char buffer[LONGEST];
    for (int tries = 0; tries < 50; tries++) {
        if (send(fd, &kind, 1, MSG_NOSIGNAL) < 0)
            die("asking the server");
        for (;;) {
            ssize_t got = recv(fd, buffer, sizeof buffer - 1, 0);
            if (got <= 0)
                break;
            if (buffer[0] == kind) {
                buffer[got] = 0;
                return strtoul(buffer + 1, NULL, 10);
            }
        }
    }
    die("the server does not answer");
    return 0;
}

static double echo(int fd, double seconds, int window, int size)
{
    static char buffer[LONGEST];
    double begun = now(), ends = begun + seconds, warm = begun + seconds / 5;
    unsigned long sent = 0, back = 0;
    int under_way = 0;

    buffer[0] = 'e';
    while (now() < ends) {
        while (under_way < window) {
            memcpy(buffer + 1, &sent, sizeof sent);
            if (send(fd, buffer, size, MSG_NOSIGNAL) != size)
                die("sending");
            sent++;
            under_way++;
        }
        char got[LONGEST];
        ssize_t length = recv(fd, got, sizeof got, 0);
        if (length == size && got[0] == 'e')
            under_way--, back += now() > warm;
        else if (length < 0 && errno == EAGAIN)
            under_way = 0; /* they are lost */
        else
            die("a message of %zd bytes came back, wanted %d", length, size);
    }
    return back / (seconds * 4 / 5);
}

static unsigned long flood(int fd, double seconds, double rate, int size)
{
    static char buffer[LONGEST];
    double begun = now(), elapsed;
    unsigned long sent = 0;

    buffer[0] = 's';
    while ((elapsed = now() - begun) < seconds) {
        unsigned long due = rate > 0 ? (unsigned long)(elapsed * rate) : sent + 16;
        while (sent < due) {
            if (send(fd, buffer, size, MSG_NOSIGNAL) < 0 && errno != ENOBUFS && errno != ECONNREFUSED)
                die("sending");
            sent++;
        }
        if (rate > 0) {
            struct timespec pause = {0, 200000};
            nanosleep(&pause, NULL);
        }
    }
    return sent;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "serve") == 0)
        serve(argv[2]);
    if (argc < 7)
        die("see the head of udp_load.c");
    char **way = argv + argc - 3;
    int fd = strcmp(way[0], "broker") == 0 ? by_broker(way[1], way[2]) : directly(way[1], way[2]);
    int size = atoi(way[-1]);
    double seconds = atof(argv[2]);

    wait_at_most(fd, FEW_MS);
    ask(fd, 'z');
    if (strcmp(argv[1], "echo") == 0) {
        printf("%f\n", echo(fd, seconds, atoi(argv[3]), size));
        return 0;
    }
    int is_percent = strcmp(argv[1], "percent") == 0;
    unsigned long sent = flood(fd, seconds, is_percent ? atof(argv[3]) : 0, size);
    unsigned long before = 0, there;
    for (int tries = 0; tries < 50; tries++, before = there) { /* until no more arrive */
        there = ask(fd, 'q');
        if (tries && there == before)
            break;
        usleep(20000);
    }
    printf("%f\n", is_percent ? 100.0 * there / sent : there / seconds);
    return 0;
}
