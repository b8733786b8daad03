/* Times kept whole, so that a percentile is one that was seen; and how they are printed. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { SAMPLES = 1 << 24 };

/* Times in tenths of a microsecond. */
typedef struct {
    uint32_t *values;
    size_t count;
} Samples;

static Samples new_samples(void) { return (Samples){.values = malloc(SAMPLES * sizeof(uint32_t))}; }

static void record(Samples *s, uint64_t ns) {
    if (s->count < SAMPLES) s->values[s->count++] = ns / 100;
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void print_percentiles(const char *name, Samples *s) {
    static const struct { const char *name; double share; } POINTS[] = {
        {"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p999", 0.999}};
    qsort(s->values, s->count, sizeof *s->values, compare);
    for (size_t i = 0; i < sizeof POINTS / sizeof *POINTS && s->count; i++) {
        size_t at = (size_t)(POINTS[i].share * s->count);
        if (at >= s->count) at = s->count - 1;
        printf(",\"%s_%s_us\":%.1f", name, POINTS[i].name, s->values[at] / 10.0);
    }
}
