/*
 * mockd: an engine that costs nothing, so that what is measured is the gateway in front of it.
 *
 *     mockd PORT [CHUNKS=50] [GAP_US=0] [DELAY_US=0]
 *
 * Speaks enough HTTP/1.1 (keep-alive, pipelining, chunked requests) to stand for vLLM on 127.0.0.1:
 *   POST with "stream":true   SSE: CHUNKS events and [DONE], one write each, GAP_US between them;
 *                             without a gap BURST events a write, for a write costs more than the
 *                             gateways that are measured spend on an event
 *   any other POST            a chat completion of 0.6 kB
 *   GET /stats                how many requests came, were answered, were given up by the client
 *   any other GET             a list of models
 * The first byte of an answer to a POST leaves after DELAY_US. One thread, one epoll.
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
#include <time.h>
#include <unistd.h>

enum { READ_BYTES = 65536, MAX_FDS = 200000, TIMERS = 1 << 18, EVENTS = 1024, BURST = 4 };

typedef enum { IDLE, ANSWERING, STREAMING } State;

typedef struct {
    int fd;
    State state;
    int chunks_left;
    char *in; /* request bytes that are not handled yet */
    int in_len, in_cap;
    char *unsent; /* answer bytes that the socket did not take */
    int unsent_len, unsent_off;
    bool wants_write;
} Conn;

/* All timers of one queue have the same delay, so first in, first out keeps it sorted. */
typedef struct {
    uint64_t due_us, generation;
    int fd;
} Timer;

typedef struct {
    Timer *timers;
    size_t head, tail;
} Queue;

static Conn *conns[MAX_FDS];
static uint64_t generations[MAX_FDS]; /* tells a connection from a later one on the same fd */
static Queue gaps, delays;
static int epoll_fd, chunk_count = 50;
static uint64_t gap_us, delay_us;
static uint64_t requests, answered, given_up, accepted;
static char answer[4096], models[2048], event[BURST * 512], last_event[1024];
static int answer_len, models_len, event_len, last_event_len;

static const char JSON_HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s";
static const char SSE_HEAD[] =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
static const char COMPLETION[] =
    "{\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion\",\"created\":1790000000,"
    "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":"
    "\"The key is in the red room, two doors to the north. I will go north, then open the door "
    "with the key and take the treasure.\",\"tool_calls\":[]},\"logprobs\":null,"
    "\"finish_reason\":\"stop\",\"stop_reason\":null,\"token_ids\":[504,2020,314,281,260,2880,"
    "1884,28,827,5921,288,260,3630]}],\"service_tier\":null,\"usage\":{\"prompt_tokens\":412,"
    "\"total_tokens\":442,\"completion_tokens\":30},\"prompt_logprobs\":null,"
    "\"kv_transfer_params\":null}";
static const char MODELS[] =
    "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1790000000,"
    "\"owned_by\":\"vllm\",\"root\":\"mock\",\"parent\":null,\"max_model_len\":4096}],"
    "\"model_path\":\"mock\",\"served_model_name\":\"mock\",\"status\":\"ok\","
    "\"version\":\"0.32.0\"}";
static const char EVENT[] =
    "data: {\"id\":\"chatcmpl-0123456789abcdef\",\"object\":\"chat.completion.chunk\","
    "\"created\":1790000000,\"model\":\"mock\",\"choices\":[{\"index\":0,\"delta\":{\"content\":"
    "\" token\"},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}]}\n\n";
static const char LAST_EVENT[] = "data: [DONE]\n\n";

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void watch(int op, int fd, uint32_t events) {
    struct epoll_event e = {.events = events, .data.fd = fd};
    epoll_ctl(epoll_fd, op, fd, &e);
}

static void drop(Conn *c) {
    if (c->state != IDLE) given_up++;
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, c->fd, NULL);
    close(c->fd);
    conns[c->fd] = NULL;
    generations[c->fd]++;
    free(c->in);
    free(c->unsent);
    free(c);
}

/* Send, or keep what the socket does not take; -1 means that the connection is dead. */
static int put(Conn *c, const char *bytes, int n) {
    if (!c->unsent_len) {
        int sent = send(c->fd, bytes, n, MSG_NOSIGNAL);
        if (sent == n) return 0;
        if (sent < 0) {
            if (errno != EAGAIN) return -1;
            sent = 0;
        }
        bytes += sent;
        n -= sent;
    }
    c->unsent = realloc(c->unsent, c->unsent_len + n);
    memcpy(c->unsent + c->unsent_len, bytes, n);
    c->unsent_len += n;
    if (!c->wants_write) {
        c->wants_write = true;
        watch(EPOLL_CTL_MOD, c->fd, EPOLLIN | EPOLLOUT);
    }
    return 0;
}

static void schedule(Queue *q, Conn *c, uint64_t after_us) {
    q->timers[q->tail++ & (TIMERS - 1)] =
        (Timer){.due_us = now_us() + after_us, .generation = generations[c->fd], .fd = c->fd};
}

static int handle_requests(Conn *c);

/* Send the next event, or all that are left where there is no gap between them. */
static int stream_on(Conn *c) {
    while (c->chunks_left > 0) {
        int n = gap_us ? 1 : c->chunks_left < BURST ? c->chunks_left : BURST;
        if (put(c, event, n * event_len) < 0) return -1;
        c->chunks_left -= n;
        if (gap_us) {
            schedule(&gaps, c, gap_us);
            return 0;
        }
    }
    if (put(c, last_event, last_event_len) < 0) return -1;
    c->state = IDLE;
    answered++;
    return handle_requests(c);
}

static int begin_answer(Conn *c) {
    if (c->state == STREAMING) {
        c->chunks_left = chunk_count;
        if (put(c, SSE_HEAD, sizeof SSE_HEAD - 1) < 0) return -1;
        return stream_on(c);
    }
    if (put(c, answer, answer_len) < 0) return -1;
    c->state = IDLE;
    answered++;
    return 0;
}

static int respond(Conn *c, bool stream) {
    requests++;
    c->state = stream ? STREAMING : ANSWERING;
    if (delay_us) {
        schedule(&delays, c, delay_us);
        return 0;
    }
    return begin_answer(c);
}

static int answer_get(Conn *c, const char *path) {
    if (strncmp(path, "/stats", 6)) return put(c, models, models_len);
    char body[512], whole[768];
    snprintf(body, sizeof body,
             "{\"requests\":%lu,\"done\":%lu,\"aborted\":%lu,\"conns\":%lu}", requests, answered,
             given_up, accepted);
    int n = snprintf(whole, sizeof whole, JSON_HEAD, strlen(body), body);
    return put(c, whole, n);
}

typedef struct {
    long body_len;
    bool chunked, close;
} Head;

static Head read_head(Conn *c, const char *end) {
    Head h = {0};
    for (char *nl = memchr(c->in, '\n', end - c->in); nl; nl = memchr(nl, '\n', end - nl)) {
        char *line = ++nl;
        if (!strncasecmp(line, "content-length:", 15)) h.body_len = atol(line + 15);
        if (!strncasecmp(line, "transfer-encoding:", 18)) h.chunked = true;
        if (!strncasecmp(line, "connection: close", 17)) h.close = true;
        if (!strncasecmp(line, "expect:", 7)) put(c, "HTTP/1.1 100 Continue\r\n\r\n", 25);
    }
    return h;
}

static void consume(Conn *c, int n) {
    memmove(c->in, c->in + n, c->in_len - n);
    c->in_len -= n;
}

/* Answer the requests that are whole, one after the other; -1 means that the connection ends. */
static int handle_requests(Conn *c) {
    while (c->state == IDLE && c->in_len > 0) {
        char *end = memmem(c->in, c->in_len, "\r\n\r\n", 4);
        if (!end) return 0;
        Head h = read_head(c, end);
        char *body = end + 4;
        int head_len = body - c->in, total = head_len + h.body_len;
        if (h.chunked) {
            char *last = memmem(body, c->in_len - head_len, "0\r\n\r\n", 5);
            if (!last) return 0;
            total = last - c->in + 5;
            h.body_len = last - body;
        }
        if (c->in_len < total) return 0;
        int alive;
        if (c->in[0] == 'P') {
            bool stream = h.body_len > 0 && (memmem(body, h.body_len, "\"stream\":true", 13) ||
                                             memmem(body, h.body_len, "\"stream\": true", 14));
            consume(c, total);
            alive = respond(c, stream);
        } else {
            char path[64] = {0};
            sscanf(c->in, "%*s %63s", path);
            consume(c, total);
            alive = answer_get(c, path);
        }
        if (alive < 0 || (h.close && c->state == IDLE)) return -1;
    }
    return 0;
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        conns[fd] = c;
        accepted++;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

static int flush_unsent(Conn *c) {
    int sent = send(c->fd, c->unsent + c->unsent_off, c->unsent_len - c->unsent_off, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) return -1;
    if (sent > 0) c->unsent_off += sent;
    if (c->unsent_off == c->unsent_len) {
        c->unsent_off = c->unsent_len = 0;
        c->wants_write = false;
        watch(EPOLL_CTL_MOD, c->fd, EPOLLIN);
    }
    return 0;
}

static int read_more(Conn *c) {
    if (c->in_len + READ_BYTES > c->in_cap) {
        c->in_cap = c->in_len + READ_BYTES;
        c->in = realloc(c->in, c->in_cap);
    }
    int n = recv(c->fd, c->in + c->in_len, c->in_cap - c->in_len, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) return -1;
    c->in_len += n;
    return handle_requests(c);
}

static void serve_event(int fd, uint32_t events) {
    Conn *c = conns[fd];
    if (!c) return;
    if ((events & EPOLLOUT) && flush_unsent(c) < 0) {
        drop(c);
        return;
    }
    if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && read_more(c) < 0) drop(c);
}

static int after_delay(Conn *c) {
    if (begin_answer(c) < 0) return -1;
    return c->state == IDLE ? handle_requests(c) : 0;
}

static void run_due(Queue *q, int (*act)(Conn *)) {
    if (q->head == q->tail) return;
    uint64_t now = now_us();
    while (q->head != q->tail && q->timers[q->head & (TIMERS - 1)].due_us <= now) {
        Timer t = q->timers[q->head++ & (TIMERS - 1)];
        Conn *c = conns[t.fd];
        if (c && generations[t.fd] == t.generation && act(c) < 0) drop(c);
    }
}

static uint64_t first_due_us(const Queue *q) {
    return q->head == q->tail ? UINT64_MAX : q->timers[q->head & (TIMERS - 1)].due_us;
}

static int wait_ms(void) {
    uint64_t gap = first_due_us(&gaps), delay = first_due_us(&delays);
    uint64_t first = gap < delay ? gap : delay;
    if (first == UINT64_MAX) return -1;
    uint64_t now = now_us();
    return first <= now ? 0 : (int)((first - now + 999) / 1000);
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4096)) {
        perror("mockd: cannot listen");
        exit(1);
    }
    return fd;
}

static void prepare(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < MAX_FDS ? files.rlim_max : MAX_FDS;
    setrlimit(RLIMIT_NOFILE, &files);
    gaps.timers = calloc(TIMERS, sizeof(Timer));
    delays.timers = calloc(TIMERS, sizeof(Timer));
    answer_len = snprintf(answer, sizeof answer, JSON_HEAD, strlen(COMPLETION), COMPLETION);
    models_len = snprintf(models, sizeof models, JSON_HEAD, strlen(MODELS), MODELS);
    event_len = snprintf(event, sizeof event, "%zx\r\n%s\r\n", strlen(EVENT), EVENT);
    for (int i = 1; i < BURST; i++) memcpy(event + i * event_len, event, event_len);
    last_event_len = snprintf(last_event, sizeof last_event, "%zx\r\n%s\r\n0\r\n\r\n",
                              strlen(LAST_EVENT), LAST_EVENT);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: mockd PORT [CHUNKS] [GAP_US] [DELAY_US]\n");
        return 2;
    }
    if (argc > 2) chunk_count = atoi(argv[2]);
    if (argc > 3) gap_us = atoll(argv[3]);
    if (argc > 4) delay_us = atoll(argv[4]);
    prepare();
    int listener = listen_on(atoi(argv[1]));
    epoll_fd = epoll_create1(0);
    watch(EPOLL_CTL_ADD, listener, EPOLLIN);
    struct epoll_event ready[EVENTS];
    for (;;) {
        int n = epoll_wait(epoll_fd, ready, EVENTS, wait_ms());
        for (int i = 0; i < n; i++) {
            if (ready[i].data.fd == listener) accept_all(listener);
            else serve_event(ready[i].data.fd, ready[i].events);
        }
        run_due(&delays, after_delay);
        run_due(&gaps, stream_on);
    }
}
