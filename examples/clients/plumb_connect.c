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
#define FAIL(status, ...) exit((fprintf(stderr, "plumb_connect: " __VA_ARGS__), fputc('\n', stderr), status))
enum { HEAD = 4, MOST = 65536, NOW = MSG_DONTWAIT | MSG_NOSIGNAL }; /* bytes of a length, and of the JSON behind it */
static union { uint32_t length; char text[HEAD + MOST + 64]; } m;   /* the request; then the answer and a NUL byte */
static size_t size = HEAD;                                          /* bytes of the message in it */
static int find_broker(void) { /* returns a connection to the first live one */
    const char *dirs[] = {getenv("IPC_RUNDIR"), getenv("RUNDIR"), getenv("XDG_RUNTIME_DIR"), "/run"};
    for (int i = 0; i < 4; i++) {
        struct sockaddr_un at = {.sun_family = AF_UNIX};
        struct stat is;
        struct ucred who = {.uid = (uid_t)-1};
        if (!dirs[i] || !*dirs[i] || strlen(dirs[i]) > sizeof at.sun_path - sizeof "/ipc/plumberd") continue;
        if (lstat(strcat(strcpy(at.sun_path, dirs[i]), i < 2 ? "" : "/ipc"), &is) < 0) continue;
        if (is.st_mode & 022 && !(is.st_mode & S_ISVTX)) FAIL(2, "%s: others can write it", at.sun_path);
        const int broker = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        strcat(at.sun_path, "/plumberd");
        if (connect(broker, (void *)&at, sizeof at) < 0 && errno == EACCES) FAIL(2, "%s: join its group", at.sun_path);
        getsockopt(broker, SOL_SOCKET, SO_PEERCRED, &who, &(socklen_t){sizeof who}); /* uid -1: nobody listens */
        if (who.uid == 0 || who.uid == geteuid() || who.uid == is.st_uid) return broker; /* no neighbour put it up */
        close(broker);
    }
    FAIL(2, "no broker to trust answers in $IPC_RUNDIR, $RUNDIR, $XDG_RUNTIME_DIR/ipc and /run/ipc");
}
static void put(const char *json, const char *string) { /* appends json, then string as JSON writes it between quotes */
    size += (size_t)sprintf(m.text + size, "%s", json);
    for (int c; size < MOST && (c = (unsigned char)*string++) != 0;)
        size += (size_t)sprintf(m.text + size, c < ' ' ? "\\u%04x" : strchr("\"\\", c) ? "\\%c" : "%c", c);
}
static int ask(int broker, int fd) { /* leaves the answer in m; returns the descriptor that came with it, or fd */
    send(broker, m.text, size, MSG_NOSIGNAL); /* a broker that has hung up may have said why */
    size = HEAD;
    for (ssize_t n, have = 0; have < (ssize_t)size; m.text[have] = 0) {
        union { struct cmsghdr head; char bytes[CMSG_SPACE(sizeof fd)]; } c; /* CMSG_SPACE has room for two */
        struct iovec io = {m.text + have, size - (size_t)have};
        struct msghdr to = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = CMSG_LEN(sizeof fd)};
        while ((n = recvmsg(broker, &to, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) continue;
        if (n <= 0) FAIL(2, "the broker hung up without an answer: %s", n ? strerror(errno) : "end of the stream");
        if (CMSG_FIRSTHDR(&to) && c.head.cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(&c.head), sizeof fd);
        if ((have += n) == HEAD && (size += ntohl(m.length)) > HEAD + MOST) FAIL(2, "the answer is too long");
    }
    return close(broker), fd;
}
static const char *blanks(const char *p) { return p + strspn(p, " \t\r\n"); }
static const char *behind(const char *p) { /* the JSON string, number or word at p, and the blanks there */
    if (*p != '"') return blanks(p + strspn(p, "+-.0123456789Eaeflnrstu"));
    while (*++p && *p != '"') p += *p == '\\' && p[1];
    return blanks(p + (*p == '"'));
}
static const char *member(const char *quoted) { /* returns its value in the answer, which has to be a flat object */
    const char *p = blanks(m.text + HEAD), *found = "";
    for (char mark = '{'; *p == mark; mark = ',') { /* strings are stepped over whole: nothing in one is a member */
        const char *key = blanks(p + 1), *colon = behind(key), *value = *colon == ':' ? blanks(colon + 1) : "";
        if (strncmp(key, quoted, strlen(quoted)) == 0) found = value;
        p = behind(value);
    }
    if (*p != '}' || blanks(p + 1) != m.text + size) FAIL(2, "the broker's answer is no flat JSON object");
    return found;
}
static int carry(int fd) { /* copies both ways; the end of one is passed on, and does not end the other */
    static char buf[2][4096], *at[2]; /* a pipe that is ready takes that much without blocking */
    struct pollfd on[] = {{0, POLLIN, 0}, {fd, POLLIN, 0}};
    for (size_t len[2]; on[0].fd >= 0 || on[1].fd >= 0;)
        for (int i = poll(on, 2, -1) < 0 ? 2 : 0; i < 2; i++) if (on[i].revents) {
            const int in = on[i].events == POLLIN; /* else what was read is to be written */
            ssize_t n = in ? read(on[i].fd, buf[i], 4096) : i ? write(1, at[1], len[1]) : send(fd, at[0], len[0], NOW);
            if (n < 0 && errno != EAGAIN && errno != EINTR && (in || i)) FAIL(2, "copying: %s", strerror(errno));
            if (in && n > 0) at[i] = buf[i], len[i] = (size_t)n, on[i] = (struct pollfd){i ? 1 : fd, POLLOUT, 0};
            else if (in && n == 0) on[i].fd = -1, n = i ? close(1) : shutdown(fd, SHUT_WR);
            else if (n > 0 && (at[i] += n, len[i] -= (size_t)n) == 0) on[i] = (struct pollfd){i ? fd : 0, POLLIN, 0};
            else if (n < 0 && errno != EAGAIN && errno != EINTR) on[0].fd = -2; /* but what it has said is delivered */
        }
    return on[0].fd == -2 ? 2 : 0;
}
int main(int argc, char **argv) {
    const char *routes = argc > 2 ? argv[2] : getenv("IPC_NETWORKD");
    if (!routes || !*routes) routes = getenv("IPC_NETWORK");
    if (argc < 2) FAIL(2, "wanted SERVICE [ROUTES]");
    put("{\"op\":\"lookup\",\"service\":\"", argv[1]), put("\",\"routes\":\"", routes ? routes : ""), put("\"}", "");
    if (size > MOST) FAIL(2, "the request is longer than a message may be");
    m.length = htonl((uint32_t)(size - HEAD));
    const int fd = ask(find_broker(), -1);
    const char *ok = member("\"ok\""), *error = member("\"error\""), *reason = member("\"reason\"");
    if (strncmp(ok, "false", 5) == 0)
        FAIL(1, "refused: %.*s: %.*s", (int)(behind(error) - error), error, (int)(behind(reason) - reason), reason);
    if (strncmp(ok, "true", 4) != 0 || fd < 0) FAIL(2, "the broker's answer grants nothing");
    return carry(fd);
}
