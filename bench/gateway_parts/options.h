/* What loadgen was told; its header says what each option means. */
#include <stdbool.h>
#include <stdlib.h>
#include <unistd.h>

enum { MAX_HEADERS = 32 };

static struct {
    int port, connections;
    double seconds, warmup_s, rate;
    bool stream, idle;
    long body_bytes;
    const char *model, *headers[MAX_HEADERS];
    int header_count;
} options = {.connections = 1, .seconds = 5, .warmup_s = 1, .body_bytes = 1500, .model = "mock"};

static void parse_options(int argc, char **argv) {
    for (int o; (o = getopt(argc, argv, "p:c:d:w:r:sB:m:H:I")) != -1;) switch (o) {
        case 'p': options.port = atoi(optarg); break;
        case 'c': options.connections = atoi(optarg); break;
        case 'd': options.seconds = atof(optarg); break;
        case 'w': options.warmup_s = atof(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 's': options.stream = true; break;
        case 'B': options.body_bytes = atol(optarg); break;
        case 'm': options.model = optarg; break;
        case 'I': options.idle = true; break;
        case 'H':
            if (options.header_count < MAX_HEADERS)
                options.headers[options.header_count++] = optarg;
            break;
        default: exit(2);
    }
}
