/* Measure relays of WebSockets: clients that send and take messages and check every byte. The server is load's.
 *
 *   ws_load echo CONNECTIONS WINDOW SECONDS HOW…   64-byte messages there and back on CONNECTIONS at once, each with
 *                                                  up to 2 WINDOW of them under way, or 1 where WINDOW is 1;
 *                                                  print messages/s
 *   ws_load down SECONDS HOW…                      a stream from the server; print bytes/s
 *   ws_load up SECONDS HOW…                        a stream to the server in messages of 128 KiB, counted when the
 *                                                  server tells that it has taken them; print bytes/s
 *   ws_load setups CLIENTS SECONDS MOST HOW…       CLIENTS at once, each in a loop: connect, upgrade, one round trip,
 *                                                  close; for SECONDS, at most MOST in all; print set-ups/s
 *
 *   HOW is HOST PORT PATH PROTOCOL                 where the relay is, and the subprotocol to ask it for
 *
 * A relay may cut a stream into messages as it likes, so it is the bytes in them that are compared and counted.
 */

#include "load.h"

#define WINDOW_MOST 64
#define FRAME_MOST 14 /* bytes before a frame's payload: RFC 6455, 5.2 */
#define REQUEST_BYTES 512
#define INPUT_BYTES (256 * 1024)
#define KEY "dGhlIHNhbXBsZSBub25jZQ==" /* RFC 6455, 1.3, and what has to be made of it */
#define ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
#define BINARY 2
#define PING 9
#define PONG 10

static struct { const char *host; int port; const char *path; const char *protocol; } how;

struct socket {
    int fd;
    unsigned char *input;
    size_t from, to; /* what of input was read and not taken */
    uint64_t left;   /* of the frame under way */
    uint32_t random;
};

/* -- frames --------------------------------------------------------------------------------------- */

/* XOR with the mask, eight bytes at a time; a client has to (RFC 6455, 5.3). */
static void mask_into(unsigned char *out, const unsigned char *data, size_t length, uint32_t mask)
{
    uint64_t wide = (uint64_t)mask << 32 | mask, word;
    size_t i = 0;
    for (; i + sizeof word <= length; i += sizeof word) {
        memcpy(&word, data + i, sizeof word);
        word ^= wide;
        memcpy(out + i, &word, sizeof word);
    }
    for (; i < length; i++)
        out[i] = data[i] ^ ((unsigned char *)&mask)[i % 4];
}

/* Write a frame into out; return its length. */
static size_t make_frame(struct socket *s, unsigned char *out, int opcode, const void *data, size_t length)
{
    size_t at = 2;
    s->random ^= s->random << 13, s->random ^= s->random >> 17, s->random ^= s->random << 5;
    out[0] = (unsigned char)(0x80 | opcode);
    if (length < 126) {
        out[1] = (unsigned char)(0x80 | length);
    } else {
        size_t size = length < 65536 ? 2 : 8;
        out[1] = size == 2 ? 0x80 | 126 : 0x80 | 127;
        for (size_t i = 0; i < size; i++)
            out[at++] = (unsigned char)((uint64_t)length >> 8 * (size - 1 - i));
    }
    memcpy(out + at, &s->random, sizeof s->random);
    at += sizeof s->random;
    mask_into(out + at, data, length, s->random);
    return at + length;
}

static void send_all(int fd, const unsigned char *data, size_t length)
{
    while (length > 0) {
        ssize_t count = send(fd, data, length, MSG_NOSIGNAL);
        if (count <= 0)
            die("sending: %s", strerror(errno));
        data += count, length -= (size_t)count;
    }
}

static void send_message(struct socket *s, const void *data, size_t length)
{
    unsigned char frame[FRAME_MOST + MESSAGE_BYTES];
    send_all(s->fd, frame, make_frame(s, frame, BINARY, data, length));
}

static void read_more(struct socket *s)
{
    if (s->from == s->to)
        s->from = s->to = 0;
    if (s->to == INPUT_BYTES) {
        memmove(s->input, s->input + s->from, s->to - s->from);
        s->to -= s->from, s->from = 0;
    }
    ssize_t count = recv(s->fd, s->input + s->to, INPUT_BYTES - s->to, 0);
    if (count <= 0)
        die("nothing comes: %s", count == 0 ? "the connection ended" : strerror(errno));
    s->to += (size_t)count;
}

static void need(struct socket *s, size_t count)
{
    while (s->to - s->from < count)
        read_more(s);
}

/* Read up to the next byte of a message; answer pings. */
static void find_payload(struct socket *s)
{
    while (s->left == 0) {
        need(s, 2);
        int opcode = s->input[s->from] & 15, small = s->input[s->from + 1];
        size_t size = small < 126 ? 0 : small == 126 ? 2 : 8;
        if (small > 127)
            die("the relay masks what it sends");
        need(s, 2 + size);
        uint64_t length = size == 0 ? (uint64_t)small : 0;
        for (size_t i = 0; i < size; i++)
            length = length << 8 | s->input[s->from + 2 + i];
        s->from += 2 + size;
        if (opcode == PING) {
            unsigned char frame[FRAME_MOST + 125];
            need(s, length);
            send_all(s->fd, frame, make_frame(s, frame, PONG, s->input + s->from, length));
            s->from += length;
        } else if (opcode > BINARY) {
            die("the relay sends a frame of opcode %d", opcode);
        } else {
            s->left = length;
        }
    }
    need(s, 1);
}

/* Take up to most bytes of messages; they stay where they are until the next call. */
static size_t take(struct socket *s, size_t most, const unsigned char **data)
{
    find_payload(s);
    size_t count = s->to - s->from;
    if (count > s->left)
        count = s->left;
    if (count > most)
        count = most;
    *data = s->input + s->from;
    s->from += count, s->left -= count;
    return count;
}

static void expect(struct socket *s, const unsigned char *wanted, size_t length)
{
    while (length > 0) {
        const unsigned char *data;
        size_t count = take(s, length, &data);
        if (memcmp(data, wanted, count) != 0)
            die("a message came back changed");
        wanted += count, length -= count;
    }
}

/* -- connections ---------------------------------------------------------------------------------- */

static struct socket open_socket(long turn)
{
    struct socket s = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), .random = (uint32_t)turn * 2654435761u | 1};
    struct sockaddr_in address = tcp_address(how.host, how.port);
    char request[REQUEST_BYTES];
    int one = 1;
    if (s.fd < 0)
        die("socket: %s", strerror(errno));
    prepare(s.fd);
    if (connect(s.fd, (struct sockaddr *)&address, sizeof address) != 0)
        die("connecting to %s:%d: %s", how.host, how.port, strerror(errno));
    setsockopt(s.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    s.input = malloc(INPUT_BYTES);
    if (s.input == NULL)
        die("out of memory");
    int length = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: localhost:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: " KEY "\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: %s\r\n\r\n",
        how.path, how.port, how.protocol);
    if (length < 0 || (size_t)length >= sizeof request)
        die("%s: too long", how.path);
    send_all(s.fd, (unsigned char *)request, (size_t)length);
    for (;;) {
        read_more(&s);
        unsigned char *end = memmem(s.input, s.to, "\r\n\r\n", 4);
        if (end != NULL) {
            if (memmem(s.input, (size_t)(end - s.input), " 101 ", 5) == NULL
                || memmem(s.input, (size_t)(end - s.input), ACCEPT, strlen(ACCEPT)) == NULL)
                die("the relay refuses: %.*s", (int)(end - s.input), s.input);
            s.from = (size_t)(end + 4 - s.input);
            return s;
        }
    }
}

static void close_socket(struct socket *s)
{
    /* With a reset, as load does, and for the same reason. */
    const struct linger reset = {.l_onoff = 1, .l_linger = 0};
    setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(s->fd);
    free(s->input);
}

/* -- the clients ---------------------------------------------------------------------------------- */

static long window;

/* Make messages that no other connection sends: their payloads in a row, and their frames. Return the frames' length. */
static size_t make_batch(struct socket *s, long turn, long number, unsigned char *payloads, unsigned char *frames)
{
    size_t length = 0;
    for (long i = 0; i < window; i++) {
        unsigned char *message = payloads + i * MESSAGE_BYTES;
        long which = number * window + i;
        memcpy(message, pattern + (which & 0xff), MESSAGE_BYTES);
        message[0] = 'e';
        memcpy(message + 1, &which, sizeof which);
        memcpy(message + 1 + sizeof which, &turn, sizeof turn);
        length += make_frame(s, frames + length, BINARY, message, MESSAGE_BYTES);
    }
    return length;
}

static void *play_echo(void *turn)
{
    static _Thread_local unsigned char payloads[2][WINDOW_MOST * MESSAGE_BYTES];
    static _Thread_local unsigned char frames[WINDOW_MOST * (MESSAGE_BYTES + FRAME_MOST)];
    size_t batch = (size_t)window * MESSAGE_BYTES;
    struct socket s = open_socket((long)turn);
    long begun_here = 0, done_here = 0, ahead = window > 1 ? 2 : 1, counted = 0;
    send_all(s.fd, frames, make_batch(&s, (long)turn, begun_here++, payloads[0], frames));
    expect(&s, payloads[0], batch);
    done_here = begun_here;
    pthread_barrier_wait(&all_ready);
    pthread_barrier_wait(&all_ready);
    while (now_seconds() < count_until) {
        while (begun_here - done_here < ahead) {
            unsigned char *into = payloads[begun_here % 2];
            send_all(s.fd, frames, make_batch(&s, (long)turn, begun_here++, into, frames));
        }
        expect(&s, payloads[done_here++ % 2], batch);
        counted += window;
    }
    for (; done_here < begun_here; done_here++)
        expect(&s, payloads[done_here % 2], batch);
    atomic_fetch_add(&done, counted);
    close_socket(&s);
    return NULL;
}

static void *receive_stream(void *turn)
{
    struct socket s = open_socket((long)turn);
    size_t phase = 0;
    long counted = 0;
    pthread_barrier_wait(&all_ready);
    pthread_barrier_wait(&all_ready);
    send_message(&s, "s", 1);
    for (double now = 0; now < count_until;) {
        const unsigned char *data;
        size_t count = take(&s, CHUNK_BYTES, &data);
        if (memcmp(data, pattern + phase, count) != 0)
            die("a stream brings wrong bytes");
        phase = (phase + count) % PERIOD_BYTES;
        now = now_seconds();
        if (now >= count_from && now < count_until)
            counted += (long)count;
    }
    atomic_fetch_add(&done, counted);
    close_socket(&s);
    return NULL;
}

static atomic_int ended;

static void *send_messages(void *socket)
{
    struct socket *s = socket;
    unsigned char *frame = malloc(FRAME_MOST + CHUNK_BYTES);
    if (frame == NULL)
        die("out of memory");
    for (size_t phase = 0; !atomic_load(&ended); phase = (phase + CHUNK_BYTES) % PERIOD_BYTES) {
        size_t length = make_frame(s, frame, BINARY, pattern + phase, CHUNK_BYTES), at = 0;
        while (at < length) {
            ssize_t count = send(s->fd, frame + at, length - at, MSG_NOSIGNAL);
            if (count <= 0 && !atomic_load(&ended))
                die("sending: %s", strerror(errno));
            if (count <= 0)
                break;
            at += (size_t)count;
        }
    }
    free(frame);
    return NULL;
}

static void *send_stream(void *turn)
{
    const long told_bytes = 1024 * 1024; /* TOLD_BYTES of load.c */
    struct socket s = open_socket((long)turn);
    const unsigned char *data;
    pthread_t sender;
    long counted = 0;
    send_message(&s, "t", 1);
    expect(&s, (const unsigned char *)"k", 1);
    pthread_barrier_wait(&all_ready);
    pthread_barrier_wait(&all_ready);
    if (pthread_create(&sender, NULL, send_messages, &s) != 0)
        die("cannot start a thread");
    for (double now = 0; now < count_until;) {
        long count = (long)take(&s, CHUNK_BYTES, &data);
        now = now_seconds();
        if (now >= count_from && now < count_until)
            counted += count * told_bytes;
    }
    atomic_store(&ended, 1);
    shutdown(s.fd, SHUT_RDWR);
    pthread_join(sender, NULL);
    atomic_fetch_add(&done, counted);
    close_socket(&s);
    return NULL;
}

static void *open_and_close(void *number)
{
    long turn;
    (void)number;
    pthread_barrier_wait(&all_ready);
    pthread_barrier_wait(&all_ready);
    while (now_seconds() < count_until && (turn = atomic_fetch_add(&begun, 1)) < most) {
        struct socket s = open_socket(turn);
        unsigned char message[MESSAGE_BYTES];
        memcpy(message, pattern + (turn & 0xff), sizeof message);
        message[0] = 'e';
        send_message(&s, message, sizeof message);
        expect(&s, message, sizeof message);
        close_socket(&s);
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
    if (count < 7)
        die("wanted echo|down|up|setups … HOST PORT PATH PROTOCOL; see ws_load.c");
    how.host = words[count - 4];
    how.port = (int)number(words[count - 3], 1, 65535);
    how.path = words[count - 2];
    how.protocol = words[count - 1];
    if (is("echo", count, 9, words)) {
        window = (long)number(words[3], 1, WINDOW_MOST);
        seconds = number(words[4], 0.01, 3600);
        printf("%.0f\n", run(play_echo, (long)number(words[2], 1, 256), 0));
    } else if (is("down", count, 7, words)) {
        seconds = number(words[2], 0.01, 3600);
        printf("%.0f\n", run(receive_stream, 1, seconds * WARM_UP));
    } else if (is("up", count, 7, words)) {
        seconds = number(words[2], 0.01, 3600);
        printf("%.0f\n", run(send_stream, 1, seconds * WARM_UP));
    } else if (is("setups", count, 9, words)) {
        seconds = number(words[3], 0.01, 3600);
        most = (long)number(words[4], 1, 1e9);
        printf("%.0f\n", run(open_and_close, (long)number(words[2], 1, 1024), 0));
    } else {
        die("wanted echo CONNECTIONS WINDOW SECONDS, down SECONDS, up SECONDS or setups CLIENTS SECONDS MOST in front "
            "of %s", how.host);
    }
    return 0;
}
