/* The body of a request: an episode's history, as long as it is asked to be. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static char *make_body(const char *model, bool stream, long size, int *len) {
    char *body = malloc(size + 4096);
    int n = sprintf(body,
                    "{\"model\":\"%s\",\"stream\":%s,\"temperature\":0.7,\"max_tokens\":64,"
                    "\"messages\":[{\"role\":\"system\",\"content\":\"You are in a grid of rooms. "
                    "Find the key, open the door.\"}",
                    model, stream ? "true" : "false");
    for (int turn = 0; n < size - 160; turn++)
        n += sprintf(body + n,
                     ",{\"role\":\"%s\",\"content\":\"Turn %d: you see a wall to the west, a "
                     "locked door to the east and a long corridor to the north.\"}",
                     turn % 2 ? "assistant" : "user", turn);
    n += sprintf(body + n, ",{\"role\":\"user\",\"content\":\"What do you do next?\"}]}");
    *len = n;
    return body;
}
