/* Linear layer, and linear layer with a gate, in whole numbers of 8 bits (W8A8).
 *
 *     y = s·(q Wᵀ)·t + bias + residual     q (rows, K) and W (N, K) whole numbers from -127 to 127; one of a row of q is
 *     y = a·gelu(b), as in linear.c        worth s (rows), one of a row of W t (N)
 *
 * q and s are made here: s is max|x| / 127 of each row of x ("dynamic, per token"). Sums of whole numbers are exact, so
 * every variant finds the same. Work is shared out as in linear.c; where x and W are words of four k,
 *
 *          k  0 1 2 3   4 5 6 7  ...         VPDPBUSD takes a word of four as it is, but wants those of x from 0 on:
 *     word   |b.b.b.b| |b.b.b.b|             it gets q + 128, and 128·ΣW is taken from the sum
 *     pair   |b . b  |                       VPMADDWD takes pairs of int16: of each word first k 0 and 2, then 1 and 3,
 *              | . b . b|                    which is a shift; x is spread like W, so no sum notices the order
 *
 * Jacob et al. 2018, arXiv 1712.05877, section 2; by rows and tokens as in ZeroQuant (Yao et al. 2022, arXiv 2206.01861).
 */
#define WHOLE
#include "bytes.h"
#include "gemm.h"

enum { SLAB = 48, KB = 256, BLOCK = 4 * LANES, FOURS = PER_WORD == 4, OFFSET = FOURS ? 128 : 0 };
#define GROUP_BYTES (256 << 10)

typedef int16_t vs __attribute__((vector_size(4 * LANES)));
typedef uint16_t vus __attribute__((vector_size(4 * LANES)));

typedef struct {
    const elem *x, *residual;   /* residual like y, or NULL */
    const int8_t *weight;
    const float *scale, *bias;  /* t; (N), with a gate (2N); bias may be NULL */
    elem *y;
    long rows, k, n, words;     /* n: columns of y; words: in a row of q, whose last block is filled up with zeros */
    int gate;
    word *q;                    /* [rows][words] */
    float *step;                /* s */
} Linear;

INLINE long width(const Linear *l) { return l->gate ? LANES : PANEL; }

/* BLOCK whole numbers -> words, LANES of them; in pairs as many again, `odd` further on. */
INLINE void spread(vi bytes, word *to, long odd) {
    if (FOURS) {
        store_total(to, bytes);
    } else {
        store_total(to, (vi)((vs)((vus)bytes << 8) >> 8));
        store_total(to + odd, (vi)((vs)bytes >> 8));
    }
}

INLINE vi load_block(const int8_t *p, long left) {
    vi v = {};
    if (left >= BLOCK) memcpy(&v, p, BLOCK);
    else memcpy(&v, p, left);
    return v;
}

static void quantize(const Linear *l, long row, int8_t *bytes) {
    const elem *x = l->x + row * l->k;
    Range range = unseen();
    for (long i = 0; i < l->k; i += LANES) range = seen(range, load(x + i));
    Steps steps = steps_of(range);
    l->step[row] = steps.step;
    for (long i = 0; i < l->k; i += LANES) store_whole(bytes + i, load(x + i), steps);
    word *q = l->q + row * l->words;
    for (long i = 0; i < l->k; i += BLOCK, q += BLOCK / PER_WORD)
        spread(load_block(bytes + i, l->k - i) ^ (FOURS ? (int)0x80808080 : 0), q, LANES);
}

/* Rows of W -> u [words][PANEL], and the sum of each. */
static void pack(const Linear *l, long panel, word *u, vi sum[2]) {
    sum[0] = sum[1] = (vi){};
    for (int half = 0; half < 2; half++) {
        long first = panel * width(l) + half * (l->gate ? l->n : LANES);
        word *to = u + half * LANES;
        for (long k = 0; k < l->k; k += BLOCK, to += BLOCK / PER_WORD * PANEL) {
            vf a[LANES];
            for (long j = 0; j < LANES; j++) a[j] = (vf)load_block(l->weight + (first + j) * l->k + k, l->k - k);
            transpose(a);
            for (long i = 0; i < LANES; i++) spread((vi)a[i], to + i * PANEL, LANES * PANEL);
            if (FOURS) for (long i = 0; i < LANES; i++) sum[half] = dot(sum[half], 0x01010101, (vi)a[i]);
        }
    }
}

static void finish(const Linear *l, long row, long rows, long column, const vi sum[2], const total *m) {
    long other = column + (l->gate ? l->n : LANES);
    vf t0 = loadf(l->scale + column), t1 = loadf(l->scale + other), b0 = {}, b1 = {};
    if (l->bias) b0 = loadf(l->bias + column), b1 = loadf(l->bias + other);
    for (long r = row; r < row + rows; r++, m += PANEL) {
        float s = l->step[r];
        vf first = __builtin_convertvector(load_total(m) - OFFSET * sum[0], vf) * (s * t0) + b0;
        vf second = __builtin_convertvector(load_total(m + LANES) - OFFSET * sum[1], vf) * (s * t1) + b1;
        long at = r * l->n + column;
        if (l->gate) {
            store(l->y + at, first * gelu(second));
        } else {
            if (l->residual) first += load(l->residual + at), second += load(l->residual + at + LANES);
            store(l->y + at, first);
            store(l->y + at + LANES, second);
        }
    }
}

static void group(const Linear *l, long first, long panels, word *u, vi (*sums)[2]) {
    total m[SLAB * PANEL];
    for (long p = 0; p < panels; p++) pack(l, first + p, u + p * l->words * PANEL, sums[p]);
    for (long row = 0; row < l->rows; row += SLAB) {
        long rows = min(SLAB, l->rows - row);
        for (long p = 0; p < panels; p++) {
            for (long at = 0; at < l->words; at += KB)
                gemm(rows, l->q + row * l->words + at, l->words, 1, u + (p * l->words + at) * PANEL,
                     min(KB, l->words - at), m, at > 0);
            finish(l, row, rows, (first + p) * width(l), sums[p], m);
        }
    }
}

int KERNEL(linear_int8)(const elem *x, const int8_t *weight, const float *scale, const float *bias, const elem *residual,
                        elem *y, long rows, long k, long n, int gate, int threads) {
    Linear l = {x, residual, weight, scale, bias, y, rows, k, n, ceil_div(k, BLOCK) * BLOCK / PER_WORD, gate, NULL, NULL};
    if (rows < 1 || threads < 1 || k < LANES || k % LANES || k > 1 << 16 || n < width(&l) || n % width(&l))
        return BAD_ARGUMENT; /* 127·255·2^16 < 2^31 */
    long panels = n / width(&l), bytes = l.words * PANEL * sizeof(word);
    long most = max(1, GROUP_BYTES / bytes), groups = min(panels, ceil_div(ceil_div(panels, most), threads) * threads);
    long size = ceil_div(panels, groups); /* of the largest group: all together are as many for each thread */
    long own = size * (bytes + 2 * sizeof(vi));
    l.q = scratch(rows * (l.words + 1) * sizeof *l.q);
    char *u = scratch(threads * own);
    if (!l.q || !u) { free(l.q); free(u); return NO_MEMORY; }
    l.step = (float *)(l.q + rows * l.words);
    large_pages(y, rows * n * sizeof *y);
#pragma omp parallel num_threads(threads)
    {
        char *mine = u + thread_number() * own;
#pragma omp for schedule(static)
        for (long r = 0; r < rows; r++) quantize(&l, r, (int8_t *)mine);
#pragma omp for schedule(dynamic, 1)
        for (long g = 0; g < groups; g++) {
            long first = share(panels, groups, g), n = share(panels, groups, g + 1) - first;
            group(&l, first, n, (word *)mine, (vi (*)[2])(mine + size * bytes));
        }
    }
    free(l.q);
    free(u);
    return OK;
}
