/*
 * loadgen: chat completion requests to a server on this machine, and what they took as one line of
 * JSON.
 *
 *     loadgen -p PORT -c CONNECTIONS -d SECONDS [-w WARMUP_S] [-r REQUESTS_PER_S] [-s]
 *             [-B BODY_BYTES] [-m MODEL] [-H "name: value"]...
 *     loadgen -p PORT -c CONNECTIONS -d SECONDS -I
 *
 * Closed loop: a connection sends its next request when the last answer is whole. With -r open
 * loop: requests are due at fixed times and latency counts from the due time, so that a stalled
 * server is not spared (no coordinated omission). -s streams and counts events. -I opens the
 * connections, sends nothing and holds them. Every connection is a session of its own, named in
 * x-session-id; a key is given with -H. It sends to 127.0.0.1 only. One thread, one epoll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "options.h"
#include "prompt.h"
#include "samples.h"

enum { HEAD_BYTES = 8192, WAITING = 1 << 20, EVENTS = 1024 };
enum { TIMER_EVENT = -1, MAX_FILES = 200000, STUCK_S = 5 };

typedef enum { AT_REST, READING_HEAD, READING_BODY } State;
typedef enum { BY_LENGTH, CHUNKED, UNTIL_CLOSE } Framing;
typedef enum { CHUNK_SIZE, CHUNK_DATA, CHUNK_END, LAST_LINE } ChunkState;

typedef struct {
    int fd, index, status, head_len, matched;
    State state;
    Framing framing;
    ChunkState chunk_state;
    long left, chunk_size;
    uint64_t start_ns, last_event_ns;
    bool keep_alive, in_flight;
    char *request;
    int request_len;
    char head[HEAD_BYTES];
} Conn;

static Conn *conns;
static int *resting, resting_count; /* open loop: connections without a request */
static uint64_t *waiting;           /* open loop: due times that found no such connection */
static size_t waiting_head, waiting_tail;
static uint64_t due_count, start_ns, measure_ns, end_ns;
static uint64_t ok, errors, bad_status, events, refused, cut;
static Samples latencies, first_events, gaps;
static int epoll_fd;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + t.tv_nsec;
}

static bool measured(uint64_t t) { return t >= measure_ns && t < end_ns; }

static void watch(int fd, int index) {
    struct epoll_event e = {.events = EPOLLIN, .data.fd = index};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
}

static int dial(Conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    int one = 1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(options.port)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(c->fd, (struct sockaddr *)&to, sizeof to)) {
        close(c->fd);
        c->fd = -1;
        refused++;
        return -1;
    }
    watch(c->fd, c->index);
    c->state = AT_REST;
    c->head_len = 0;
    return 0;
}

static void dial_again(Conn *c) {
    close(c->fd);
    dial(c);
}

static void fire(Conn *c, uint64_t counted_from_ns) {
    if (c->fd < 0 && dial(c) < 0) {
        errors++;
        c->in_flight = false;
        return;
    }
    c->start_ns = counted_from_ns;
    c->last_event_ns = 0;
    c->state = READING_HEAD;
    c->head_len = c->matched = 0;
    c->in_flight = true;
    for (int sent = 0; sent < c->request_len;) {
        int n = send(c->fd, c->request + sent, c->request_len - sent, MSG_NOSIGNAL);
        if (n <= 0 && errno == EINTR) continue;
        if (n <= 0) break;
        sent += n;
    }
}

static void next(Conn *c) {
    c->in_flight = false;
    uint64_t now = now_ns();
    if (now >= end_ns) return;
    if (options.rate <= 0) fire(c, now);
    else if (waiting_head != waiting_tail) fire(c, waiting[waiting_head++ & (WAITING - 1)]);
    else resting[resting_count++] = c->index;
}

static void finish(Conn *c, bool whole) {
    uint64_t now = now_ns();
    c->state = AT_REST;
    if (measured(now)) {
        if (whole && c->status == 200) {
            ok++;
            record(&latencies, now - c->start_ns);
        } else {
            errors++;
            if (whole && !bad_status++)
                fprintf(stderr, "first bad status %d: %.300s\n", c->status, c->head);
        }
    }
    if (!c->keep_alive || !whole) dial_again(c);
    next(c);
}

static void count_event(Conn *c) {
    uint64_t now = now_ns();
    if (measured(now)) {
        events++;
        if (c->last_event_ns) record(&gaps, now - c->last_event_ns);
        else record(&first_events, now - c->start_ns);
    }
    c->last_event_ns = now;
}

static void count_events(Conn *c, const char *bytes, int n) {
    static const char MARK[] = "data:";
    if (!options.stream) return;
    for (int i = 0; i < n; i++) {
        if (bytes[i] != MARK[c->matched]) {
            c->matched = bytes[i] == 'd';
        } else if (++c->matched == 5) {
            c->matched = 0;
            count_event(c);
        }
    }
}

static void read_framing(Conn *c, const char *end) {
    c->framing = UNTIL_CLOSE;
    c->left = -1;
    c->keep_alive = true;
    for (char *at = strstr(c->head, "\r\n"); at && at < end; at = strstr(at + 2, "\r\n")) {
        char *line = at + 2;
        if (!strncasecmp(line, "content-length:", 15)) {
            c->framing = BY_LENGTH;
            c->left = atol(line + 15);
        } else if (!strncasecmp(line, "transfer-encoding: chunked", 26)) {
            c->framing = CHUNKED;
            c->chunk_state = CHUNK_SIZE;
            c->chunk_size = 0;
        } else if (!strncasecmp(line, "connection: close", 17)) {
            c->keep_alive = false;
        }
    }
}

/* Take bytes of the head; return how many, or -1 where the answer ended with them. */
static int feed_head(Conn *c, const char *bytes, int n) {
    int room = HEAD_BYTES - 1 - c->head_len, before = c->head_len, taken = n < room ? n : room;
    memcpy(c->head + before, bytes, taken);
    c->head_len += taken;
    c->head[c->head_len] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (c->head_len < HEAD_BYTES - 1) return taken;
        finish(c, false);
        return -1;
    }
    taken = (int)(end - c->head) + 4 - before;
    c->status = atoi(c->head + 9);
    c->head_len = 0;
    if (c->status == 100) return taken;
    read_framing(c, end);
    c->state = READING_BODY;
    if (c->framing != BY_LENGTH || c->left) return taken;
    finish(c, true);
    return -1;
}

static int take_data(Conn *c, const char *bytes, int n) {
    int taken = n < c->left ? n : (int)c->left;
    count_events(c, bytes, taken);
    c->left -= taken;
    return taken;
}

static void take_size(Conn *c, char ch) {
    if (ch == '\n') {
        c->left = c->chunk_size;
        c->chunk_state = c->chunk_size ? CHUNK_DATA : LAST_LINE;
        return;
    }
    int digit = ch <= '9' ? ch - '0' : (ch | 32) - 'a' + 10;
    if (digit >= 0 && digit < 16) c->chunk_size = c->chunk_size * 16 + digit;
}

/* As feed_head, for a chunked body. */
static int feed_chunks(Conn *c, const char *bytes, int n) {
    if (c->chunk_state == CHUNK_DATA) {
        int taken = take_data(c, bytes, n);
        if (!c->left) c->chunk_state = CHUNK_END;
        return taken;
    }
    if (c->chunk_state == CHUNK_SIZE) {
        take_size(c, *bytes);
    } else if (*bytes == '\n') {
        if (c->chunk_state == LAST_LINE) {
            finish(c, true);
            return -1;
        }
        c->chunk_state = CHUNK_SIZE;
        c->chunk_size = 0;
    }
    return 1;
}

static int feed_body(Conn *c, const char *bytes, int n) {
    if (c->framing == CHUNKED) return feed_chunks(c, bytes, n);
    if (c->framing == UNTIL_CLOSE) {
        count_events(c, bytes, n);
        return n;
    }
    int taken = take_data(c, bytes, n);
    if (c->left) return taken;
    finish(c, true);
    return -1;
}

static void feed(Conn *c, const char *bytes, int n) {
    while (n > 0 && c->state != AT_REST) {
        int taken = c->state == READING_HEAD ? feed_head(c, bytes, n) : feed_body(c, bytes, n);
        if (taken < 0) return;
        bytes += taken;
        n -= taken;
    }
}

static void hung_up_on(Conn *c) {
    if (c->state == READING_BODY && c->framing == UNTIL_CLOSE) {
        c->keep_alive = false;
        finish(c, true);
    } else if (c->in_flight) {
        cut++;
        finish(c, false);
    } else {
        dial_again(c);
    }
}

static void read_answer(Conn *c) {
    static char buffer[1 << 18];
    if (c->fd < 0) return;
    int n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) hung_up_on(c);
    else feed(c, buffer, n);
}

static void fire_due(int timer) {
    uint64_t ticks = 0;
    if (read(timer, &ticks, sizeof ticks) != sizeof ticks) return;
    while (ticks--) {
        uint64_t due = start_ns + (uint64_t)(due_count++ * 1e9 / options.rate);
        if (resting_count) fire(&conns[resting[--resting_count]], due);
        else waiting[waiting_tail++ & (WAITING - 1)] = due;
    }
}

static int start_timer(void) {
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    time_t whole = (time_t)(1 / options.rate);
    struct timespec every = {whole, (long)((1 / options.rate - (double)whole) * 1e9)};
    struct itimerspec spec = {.it_interval = every, .it_value = {0, 1000}};
    watch(timer, TIMER_EVENT);
    timerfd_settime(timer, 0, &spec, NULL);
    for (int i = options.connections - 1; i >= 0; i--) resting[resting_count++] = i;
    return timer;
}

static void run(void) {
    start_ns = now_ns();
    measure_ns = start_ns + (uint64_t)(options.warmup_s * 1e9);
    end_ns = measure_ns + (uint64_t)(options.seconds * 1e9);
    int timer = -1;
    if (options.rate > 0) timer = start_timer();
    else for (int i = 0; i < options.connections; i++) fire(&conns[i], now_ns());
    struct epoll_event ready[EVENTS];
    for (uint64_t now = now_ns(); now < end_ns; now = now_ns()) {
        int left_ms = (int)((end_ns - now) / 1000000) + 1;
        int n = epoll_wait(epoll_fd, ready, EVENTS, left_ms > 100 ? 100 : left_ms);
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd == TIMER_EVENT) fire_due(timer);
            else read_answer(&conns[ready[i].data.fd]);
        }
    }
}

static void report(int body_len) {
    uint64_t now = now_ns();
    double seconds = (now - measure_ns) / 1e9;
    int stuck = 0;
    for (int i = 0; i < options.connections; i++)
        if (conns[i].in_flight && now - conns[i].start_ns > STUCK_S * 1000000000ull) stuck++;
    printf("{\"seconds\":%.3f,\"ok\":%lu,\"errors\":%lu,\"bad_status\":%lu,\"cut\":%lu,"
           "\"refused\":%lu,\"stuck\":%d,\"rps\":%.1f,\"body_bytes\":%d",
           seconds, ok, errors, bad_status, cut, refused, stuck, ok / seconds, body_len);
    print_percentiles("latency", &latencies);
    if (options.stream) {
        printf(",\"events_per_s\":%.1f", events / seconds);
        print_percentiles("ttft", &first_events);
        print_percentiles("gap", &gaps);
    }
    printf("}\n");
}

static void make_request(Conn *c, const char *body, int body_len) {
    c->request = malloc(body_len + HEAD_BYTES);
    int n = sprintf(c->request,
                    "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n"
                    "content-type: application/json\r\nx-session-id: ep-%d\r\n",
                    options.port, c->index);
    for (int i = 0; i < options.header_count; i++)
        n += sprintf(c->request + n, "%s\r\n", options.headers[i]);
    n += sprintf(c->request + n, "content-length: %d\r\n\r\n", body_len);
    memcpy(c->request + n, body, body_len);
    c->request_len = n + body_len;
}

static int open_connections(void) {
    int body_len;
    char *body = make_body(options.model, options.stream, options.body_bytes, &body_len);
    for (int i = 0; i < options.connections; i++) {
        conns[i].index = i;
        make_request(&conns[i], body, body_len);
        if (dial(&conns[i]) < 0 && i == 0) {
            fprintf(stderr, "loadgen: nobody listens on port %d\n", options.port);
            exit(1);
        }
        /* Leave the server time to accept: its backlog is shorter than this. */
        if (options.connections > 2000 && i % 500 == 499) usleep(20000);
    }
    return body_len;
}

int main(int argc, char **argv) {
    parse_options(argc, argv);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MAX_FILES ? files.rlim_max : MAX_FILES;
    setrlimit(RLIMIT_NOFILE, &files);
    epoll_fd = epoll_create1(0);
    conns = calloc(options.connections, sizeof *conns);
    resting = calloc(options.connections + 1, sizeof *resting);
    waiting = calloc(WAITING, sizeof *waiting);
    latencies = new_samples();
    first_events = new_samples();
    gaps = new_samples();
    int body_len = open_connections();
    if (options.idle) {
        printf("{\"idle\":%d,\"refused\":%lu}\n", options.connections, refused);
        fflush(stdout);
        sleep((unsigned)options.seconds);
        return 0;
    }
    run();
    report(body_len);
    return 0;
}
