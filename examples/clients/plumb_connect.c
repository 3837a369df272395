/* plumb_connect SERVICE [ROUTES]: connect standard input and output to a service. A whole client of plumberd's native
 * protocol (docs/protocol.md). ROUTES is what $IPC_NETWORKD would hold. Status: 0 done, 1 refused, 2 anything else. */
#define _GNU_SOURCE /* MSG_CMSG_CLOEXEC is POSIX only since 2024 */
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#define FAIL(...) exit((fprintf(stderr, "plumb_connect: " __VA_ARGS__), fputc('\n', stderr), 2))
enum { HEAD = 4, MOST = 65536 };    /* bytes of a message's length, and of the JSON behind it at most */
static char text[HEAD + MOST + 16]; /* the request, then the answer and a NUL byte */

static int find_broker(void) { /* returns a connection to the first live one */
    const char *dirs[] = {getenv("IPC_RUNDIR"), getenv("RUNDIR"), getenv("XDG_RUNTIME_DIR"), "/run"};
    for (int i = 0; i < 4; i++) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        struct stat is;
        const int room = sizeof at.sun_path - sizeof "/plumberd";
        const int size = snprintf(at.sun_path, room, "%s%s", dirs[i] ? dirs[i] : "", i < 2 ? "" : "/ipc");
        if (!dirs[i] || !*dirs[i] || size >= room || stat(at.sun_path, &is)) continue;
        if (is.st_mode & (S_IWGRP | S_IWOTH) && !(is.st_mode & S_ISVTX)) /* anybody's socket could lie there */
            FAIL("%s: others can write this directory, and its sticky bit is not set", at.sun_path);
        const int broker = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        strcpy(at.sun_path + size, "/plumberd");
        if (connect(broker, (struct sockaddr *)&at, sizeof at) == 0) return broker;
        if (errno == EACCES) FAIL("%s: you may not ask this broker; join the socket's group", at.sun_path);
        close(broker);
    }
    FAIL("no broker answers; looked in $IPC_RUNDIR, $RUNDIR, $XDG_RUNTIME_DIR/ipc and /run/ipc");
}
static size_t put(size_t size, const char *json, const char *string) { /* appends json, then string as JSON quotes it */
    size += (size_t)sprintf(text + size, "%s", json);
    for (int c; (c = (unsigned char)*string) != 0 && size < MOST; string++)
        size += (size_t)sprintf(text + size, c < ' ' ? "\\u%04x" : strchr("\"\\", c) ? "\\%c" : "%c", c);
    return *string ? MOST : size
}
static int receive(int broker) { /* puts one answer into text; returns the descriptor that came with it, or -1 */
    int fd = -1;
    for (size_t have = 0, want = HEAD; have < want; text[have] = 0) {
        union { struct cmsghdr head; char bytes[CMSG_SPACE(sizeof fd)]; } with;
        struct iovec part = {text + have, want - have};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &with};
        message.msg_controllen = CMSG_LEN(sizeof fd); /* CMSG_SPACE would let a second descriptor in */
        const ssize_t n = recvmsg(broker, &message, MSG_CMSG_CLOEXEC);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) FAIL("the broker hung up without an answer: %s", n ? strerror(errno) : "end of the stream");
        if (CMSG_FIRSTHDR(&message) && with.head.cmsg_level == SOL_SOCKET && with.head.cmsg_type == SCM_RIGHTS)
            memcpy(&fd, CMSG_DATA(&with.head), sizeof fd);
        if ((have += (size_t)n) == HEAD) want += ntohl(*(uint32_t *)text);
        if (want > HEAD + MOST) FAIL("the broker's answer is longer than a message may be");
    }
    return fd;
}
static const char *blanks(const char *p) { return p + strspn(p, " \t\r\n"); }
static const char *behind(const char *p) { /* the JSON string, number or word at p, and the blanks there */
    if (*p != '"') return blanks(p + strspn(p, "+-.0123456789Eaeflnrstu"));
    for (p++; *p && *p != '"'; p++) p += *p == '\\' && p[1];
    return blanks(p + (*p == '"'));
}
static const char *member(const char *quoted) { /* returns its value in the answer, which has to be a flat object */
    const char *p = blanks(text + HEAD), *found = "";
    for (char mark = '{'; *p == mark; mark = ',') { /* strings are stepped over whole: nothing in one is a member */
        const char *key = blanks(p + 1), *value = behind(key);
        if (*key != '"' || *value != ':') break;
        p = behind(value = blanks(value + 1));
        if (strncmp(key, quoted, strlen(quoted)) == 0) found = value;
    }
    if (*p != '}' || *blanks(p + 1)) FAIL("the broker's answer is no flat JSON object");
    return found;
}
static void carry(int sock) { /* copies both ways; the end of one is passed on, and does not end the other */
    struct pollfd on[] = {{0, POLLIN, 0}, {sock, POLLIN, 0}};
    static char data[2][4096]; /* a pipe that is ready takes as much as this without blocking */
    for (ssize_t n, at[2], end[2]; on[0].fd >= 0 || on[1].fd >= 0;)
        for (int i = poll(on, 2, -1) < 0 ? 2 : 0; i < 2; i++) {
            if (!on[i].revents) continue;
            const int reads = on[i].events == POLLIN;
            if (reads) n = read(on[i].fd, data[i], sizeof data[i]);
            else n = i ? write(1, data[i] + at[i], left) : send(sock, data[i] + at[i], left, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n < 0 && errno != EAGAIN && errno != EINTR) FAIL("the connection broke: %s", strerror(errno));
            if (reads && n > 0) on[i] = (struct pollfd){i ? 1 : sock, POLLOUT, 0}, at[i] = 0, end[i] = n;
            if (reads && n == 0) on[i].fd = -1, n = i ? close(1) : shutdown(sock, SHUT_WR);
            if (!reads && n > 0 && (at[i] += n) == end[i]) on[i] = (struct pollfd){i ? sock : 0, POLLIN, 0};
        }
}
int main(int argc, char **argv) {
    const char *routes = argc > 2 ? argv[2] : getenv("IPC_NETWORKD");
    if (!routes || !*routes) routes = getenv("IPC_NETWORK");
    if (argc < 2) FAIL("wanted SERVICE [ROUTES]");
    const int broker = find_broker();
    const size_t size = put(put(put(HEAD, "{\"op\":\"lookup\",\"service\":\"", argv[1]), "\",\"routes\":\"", routes ? routes : ""), "\"}", "");
    if (size > HEAD + MOST) FAIL
    *(uint32_t *)text = htonl(size - HEAD);
    if (send(broker, text, size, MSG_NOSIGNAL) != (ssize_t)size) FAIL("the broker hung up");
    const int fd = receive(broker);
    const char *ok = member("\"ok\""), *error = member("\"error\""), *reason = member("\"reason\"");
    if (strncmp(ok, "false", 5) == 0) {
        fprintf(stderr, "plumb_connect: refused: %.*s: %.*s\n", (int)(behind(error) - error), error, (int)(behind(reason) - reason), reason);
        return 1;
    }
    if (strncmp(ok, "true", 4) || fd < 0) FAIL("the broker's answer grants nothing");
    close(broker);
    carry(fd);
}
