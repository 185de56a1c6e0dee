/* Linear layer, and linear layer with a gate, on plain weights.
 *
 *     y = act(x Wᵀ + bias) + residual         x (rows, K), W (N, K), y (rows, N); act: none, gelu or quick gelu
 *     y = a·gelu(b),  (a, b) = x Wᵀ + bias    W (2N, K): GEGLU (Shazeer 2020, arXiv 2002.05202)
 *
 * A thread takes a group of panels of W, packs each, and keeps them while x streams by:
 *
 *              K                    PANEL columns           with a gate, one panel holds LANES columns of a
 *        .-----------.             +--+--+--+               and the LANES columns of b that belong to them,
 *   SLAB |  x        |    ·      K |u0|u1|u2| in L2         so that a·gelu(b) needs no second pass
 *        '-----------'             +--+--+--+
 *
 * Packing costs LANES·K steps a panel, and SLAB·LANES·K a slab, so it is a few percent from 100 rows on; nothing is
 * kept between calls. Sums run along blocks of K, whose share of a panel stays in L1.
 */
#include "gemm.h"

enum { SLAB = 48, KB = 256 };
enum { NO_ACT, GELU, QUICK_GELU };
#define GROUP_BYTES (256 << 10)

typedef struct {
    const elem *x, *weight, *residual; /* residual like y, or NULL */
    const float *bias;                 /* (N), with a gate (2N), or NULL */
    elem *y;
    long rows, k, n, x_step, y_step;   /* n: columns of y; steps from row to row, in elements */
    int gate, act;
} Linear;

/* Columns of y in one panel. */
INLINE long width(const Linear *l) { return l->gate ? LANES : PANEL; }

static void pack(const Linear *l, long panel, word *u) {
    const elem *rows[PANEL];
    for (long j = 0; j < PANEL; j++) {
        long column = panel * width(l) + (l->gate ? j % LANES + j / LANES * l->n : j);
        rows[j] = l->weight + column * l->k;
    }
    for (long j = 0; j < PANEL; j++) for (long at = 0; at < l->k; at += 32) __builtin_prefetch(rows[j] + at);
    pack_panel(rows, l->k / PER_WORD, u);
}

static void finish(const Linear *l, long row, long rows, long column, const float *m) {
    vf b0 = {}, b1 = {};
    if (l->bias) b0 = loadf(l->bias + column), b1 = loadf(l->bias + column + (l->gate ? l->n : LANES));
    for (long r = 0; r < rows; r++, m += PANEL) {
        vf first = loadf(m) + b0, second = loadf(m + LANES) + b1;
        long at = (row + r) * l->y_step + column;
        if (l->gate) {
            store(l->y + at, first * gelu(second));
        } else {
            if (l->act == GELU) first = gelu(first), second = gelu(second);
            if (l->act == QUICK_GELU) first = quick_gelu(first), second = quick_gelu(second);
            if (l->residual) first += load(l->residual + at), second += load(l->residual + at + LANES);
            store(l->y + at, first);
            store(l->y + at + LANES, second);
        }
    }
}

#if defined(BF16) && !defined(PAIRS) /* words are float, tensors are not: widen the rows of x first */
enum { WIDEN = 1 };
#else
enum { WIDEN = 0 };
#endif
static const word *slab(const Linear *l, long row, long rows, word *room) {
    const elem *x = l->x + row * l->x_step;
    if (!WIDEN) return (const word *)x;
    for (long r = 0; r < rows; r++, x += l->x_step)
        for (long k = 0; k < l->k; k += LANES) storef((float *)room + r * l->k + k, load(x + k));
    return room;
}

static void group(const Linear *l, long first, long panels, word *u) {
    float m[SLAB * PANEL];
    long k = l->k / PER_WORD, step = WIDEN ? k : l->x_step / PER_WORD;
    word *room = u + panels * k * PANEL;
    for (long p = 0; p < panels; p++) pack(l, first + p, u + p * k * PANEL);
    for (long row = 0; row < l->rows; row += SLAB) {
        long rows = min(SLAB, l->rows - row);
        const word *x = slab(l, row, rows, room);
        for (long p = 0; p < panels; p++) {
            for (long at = 0; at < k; at += KB)
                gemm(rows, x + at, step, 1, u + (p * k + at) * PANEL, min(KB, k - at), m, at > 0);
            finish(l, row, rows, (first + p) * width(l), m);
        }
    }
}

int KERNEL(linear)(const elem *x, const elem *weight, const float *bias, const elem *residual, elem *y, long rows, long k,
                   long n, long x_step, long y_step, int gate, int act, int threads) {
    Linear l = {x, weight, residual, bias, y, rows, k, n, x_step, y_step, gate, act};
    if (rows < 1 || threads < 1 || k < LANES || k % LANES || x_step % PER_WORD || n < width(&l) || n % width(&l) ||
        act < NO_ACT || act > QUICK_GELU)
        return BAD_ARGUMENT;
    long panels = n / width(&l), bytes = k / PER_WORD * PANEL * sizeof(word);
    long most = max(1, GROUP_BYTES / bytes), groups = min(panels, ceil_div(ceil_div(panels, most), threads) * threads);
    long size = ceil_div(panels, groups); /* of the largest group: all together are as many for each thread */
    long own = size * bytes / sizeof(word) + (WIDEN ? SLAB * k : 0);
    word *u = scratch(threads * own * sizeof *u);
    if (!u) return NO_MEMORY;
    large_pages(y, rows * n * sizeof *y);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (long g = 0; g < groups; g++) {
        long first = share(panels, groups, g), n = share(panels, groups, g + 1) - first;
        group(&l, first, n, u + thread_number() * own);
    }
    free(u);
    return OK;
}
