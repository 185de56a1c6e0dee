/* 3x3 convolution, stride 1, padding 1, channels last, by Winograd's minimal filtering: see winograd.h.
 *
 * Summed over input channels, the products of each of the 36 (or 24) taps are one matrix product:
 *
 *       x (B, H, W, Ci)          V [Ci/KC][TAPS][tiles][KC]
 *      .-.-.-.-.-.-.
 *      | . . . . . |  Bᵀ·B           +----------+     for each panel of output channels:
 *      | . tile. . |  -------->  tap | tiles x KC |  ·  U [TAPS][KC][PANEL]  =  M [TAPS][tiles][PANEL]  -- Aᵀ·A -->  y
 *      | . . . . . |                 +----------+
 *      '-'-'-'-'-'-'                                     U = G g Gᵀ, made from the plain weights as it is needed
 *
 * U of a panel is recomputed for every chunk of tiles: that costs a few percent, and saves packed weights two to four
 * times the size of the plain ones, and the time to read them.
 */
#include "winograd.h"
#ifndef CONVOLUTION
#define CONVOLUTION conv3x3
#define UP 0 /* 1: of a map that is doubled in height and width first, by nearest neighbour */
#endif

enum { KC = TALL == 2 ? 160 : 128, U_TAP = KC * PANEL + PAD }; /* KC: words of input channels at a time, at most */
#define M_BYTES (256 << 10)

typedef struct {
    const elem *x1, *x2;     /* inputs (batch, h, w, c1) and (batch, h, w, ci - c1): read as if joined by channels */
    const elem *weight;      /* (co, 3, 3, ci); or if turned (ci, 3, 3, co), for the gradient by the input */
    const float *bias;       /* (co), or (batch, co) with bias_step = co; may be NULL */
    const elem *residual;    /* like y, added before the activation; may be NULL */
    elem *y;                 /* (batch, h, w, co) */
    long batch, h, w, c1, ci, co, bias_step; /* h, w are y's: with UP, twice x's */
    long words, kc;          /* of input channels: in all, and at a time */
    int turned, act;
} Conv;

/* The inputs of one tile, all channels -> V. `v` is the tile's first word; `tap` and `block` are V's strides. */
static void transform_input(const Conv *c, long tile, word *v, long tap, long block) {
    long pixel[TAPS];
    inputs_of(place(c->h, c->w, tile), c->h, c->w, UP, pixel);
    for (long ch = 0; ch < c->ci; ch += LANES) {
        int first = ch < c->c1;
        input_taps(first ? c->x1 + ch : c->x2 + (ch - c->c1), first ? c->c1 : c->ci - c->c1, pixel,
                   v + ch / PER_WORD / c->kc * block + ch / PER_WORD % c->kc, tap);
    }
}

/* Plain weights of LANES words of input channels from `ci` on, of which n are there, and PANEL channels from `co` on. */
static void plain_weights(const Conv *c, long co, long ci, long n, word *to) { /* [9][LANES][PANEL] */
    for (long t = 0; t < 9; t++, to += LANES * PANEL) {
        if (c->turned) { /* by half a turn, and from channels out to channels in */
            const elem *from = c->weight + (ci * 9 + 8 - t) * c->co + co;
            for (long i = 0; i < n; i++, from += PER_WORD * 9 * c->co) for (int half = 0; half < PANEL; half += LANES)
                store_words(to + i * PANEL + half, load(from + half), load(from + (PER_WORD - 1) * 9 * c->co + half));
            continue;
        }
        const elem *rows[PANEL];
        for (int j = 0; j < PANEL; j++) {
            rows[j] = c->weight + ((co + j) * 9 + t) * c->ci + ci;
            __builtin_prefetch(rows[j] + LANES * PER_WORD); /* the next ones, which lie apart */
        }
        pack_panel(rows, n, to);
    }
}

/* Weights of PANEL output channels from `co` on, and n words of input channels from `ci` on -> U, taps U_TAP apart. */
static void transform_weights(const Conv *c, long co, long ci, long n, word *u) {
    word plain[9 * LANES * PANEL];
    for (long k = 0; k < n; k += LANES) {
        plain_weights(c, co, ci + k * PER_WORD, min(LANES, n - k), plain);
        for (int i = 0; i < min(LANES, n - k); i++) for (int half = 0; half < PANEL; half += LANES) {
            vf g[9][PER_WORD], columns[PER_WORD][DOWN][3], column[3], row[PER_WORD][ACROSS];
            UNROLL for (int t = 0; t < 9; t++) elements(load_words(plain + (t * LANES + i) * PANEL + half), g[t]);
            UNROLL for (int e = 0; e < PER_WORD; e++) UNROLL for (int x = 0; x < 3; x++) {
                UNROLL for (int y = 0; y < 3; y++) column[y] = g[y * 3 + x][e];
                vf points[DOWN];
                weight_points(TALL, column, points);
                UNROLL for (int y = 0; y < DOWN; y++) columns[e][y][x] = points[y];
            }
            word *to = u + (k + i) * PANEL + half;
            UNROLL for (int y = 0; y < DOWN; y++) {
                UNROLL for (int e = 0; e < PER_WORD; e++) weight_points(WIDE, columns[e][y], row[e]);
                UNROLL for (int x = 0; x < ACROSS; x++, to += U_TAP) store_words(to, row[0][x], row[PER_WORD - 1][x]);
            }
        }
    }
}

/* M of one tile and panel -> its outputs, with bias, residual and activation; what hangs over the edge is dropped. */
static void transform_output(const Conv *c, long tile, long co, const float *m, long tap) {
    Place p = place(c->h, c->w, tile);
    for (long ch = co; ch < co + PANEL; ch += LANES, m += LANES) {
        vf half[TALL][ACROSS], column[DOWN], rest[TALL], row[WIDE];
        UNROLL for (int j = 0; j < ACROSS; j++) {
            UNROLL for (int i = 0; i < DOWN; i++) column[i] = loadf(m + (i * ACROSS + j) * tap);
            from_points(TALL, column, rest);
            UNROLL for (int i = 0; i < TALL; i++) half[i][j] = rest[i];
        }
        vf bias = c->bias ? loadf(c->bias + p.b * c->bias_step + ch) : (vf){};
        for (long i = 0; i < min(TALL, c->h - p.top); i++) {
            from_points(WIDE, half[i], row);
            long at = ((p.b * c->h + p.top + i) * c->w + p.left) * c->co + ch;
            for (long j = 0; j < min(WIDE, c->w - p.left); j++, at += c->co) {
                vf y = row[j] + bias;
                if (c->residual) y += load(c->residual + at);
                store(c->y + at, c->act ? silu(y) : y);
            }
        }
    }
}

/* Whether a tap of every tile is zero: of neighbours that are one pixel, doubled, o[2] of two points is the difference. */
INLINE int nothing(int tap) { return UP && TALL == 2 && WIDE == 2 && (tap / ACROSS == 2 || tap % ACROSS == 2); }

/* One panel of output channels for n tiles from `first` on; their V begins at `v`. M of up to `step` of them is kept. */
static void panel(const Conv *c, long co, long first, long n, long step, const word *v, long tap, long block, word *u,
                  float *m) {
    long m_tap = step * PANEL + PAD;
    for (long from = 0; from < n; from += step, v += step * c->kc) {
        long count = min(step, n - from);
        const word *x = v;
        for (long k = 0; k < c->words; k += c->kc, x += block) {
            long words = min(c->kc, c->words - k);
            if (from == 0 || words < c->words) transform_weights(c, co, k * PER_WORD, words, u);
            for (int t = 0; t < TAPS; t++) {
                if (nothing(t)) memset(m + t * m_tap, 0, count * PANEL * sizeof *m);
                else gemm(count, x + t * tap, c->kc, 1, u + t * U_TAP, words, m + t * m_tap, k > 0);
            }
        }
        for (long t = 0; t < count; t++) transform_output(c, first + from + t, co, m + t * PANEL, m_tap);
    }
}

int KERNEL(CONVOLUTION)(const elem *x1, const elem *x2, const elem *weight, const float *bias, const elem *residual, elem *y,
                        long batch, long h, long w, long c1, long ci, long co, long bias_step, int turned, int act,
                        int threads) {
    if (batch < 1 || h < 1 || w < 1 || threads < 1 || c1 < 1 || c1 > ci) return BAD_ARGUMENT;
    if (c1 % LANES || ci % LANES || co < PANEL || co % PANEL || (UP && (h % 2 || w % 2))) return BAD_ARGUMENT;
    long tiles = tiles_of(batch, h, w), panels = co / PANEL, words = ci / PER_WORD, blocks = ceil_div(words, KC);
    long kc = ceil_div(ceil_div(words, blocks), LANES) * LANES;
    Conv c = {x1, x2, weight, bias, residual, y, batch, h, w, c1, ci, co, bias_step, words, kc, turned, act};
    long most = max(64, (6L << 20) / (TAPS * words * sizeof(word))), chunks = ceil_div(tiles, most);
    long chunk = ceil_div(ceil_div(tiles, chunks), ROWS) * ROWS;   /* tiles whose V is in the cache at a time */
    long parts = min(ceil_div(2 * threads, panels), chunk / ROWS); /* of a chunk, where panels alone are too few */
    long part = ceil_div(chunk / ROWS, parts) * ROWS;
    long step = blocks > 1 ? part : min(part, M_BYTES / (TAPS * PANEL * 4) / ROWS * ROWS); /* else U would be made again */
    long tap = chunk * kc + PAD, block = TAPS * tap;
    size_t u_size = TAPS * U_TAP, m_size = TAPS * (step * PANEL + PAD);
    word *v = scratch(blocks * block * sizeof *v);
    char *own = scratch(threads * (u_size * sizeof(word) + m_size * sizeof(float)));
    if (!v || !own) { free(v); free(own); return NO_MEMORY; }
    large_pages(y, batch * h * w * co * sizeof *y);
#pragma omp parallel num_threads(threads)
    {
        word *u = (word *)(own + thread_number() * (u_size * sizeof *u + m_size * sizeof(float)));
        float *m = (float *)(u + u_size);
        for (long first = 0; first < tiles; first += chunk) {
            long n = min(chunk, tiles - first);
#pragma omp for schedule(static)
            for (long t = 0; t < n; t++) transform_input(&c, first + t, v + t * kc, tap, block);
#pragma omp for schedule(dynamic, 1)
            for (long job = 0; job < panels * parts; job++) {
                long from = job % parts * part, count = min(part, n - from);
                if (count > 0)
                    panel(&c, job / parts * PANEL, first + from, count, step, v + from * kc, tap, block, u, m);
            }
        }
    }
    free(v);
    free(own);
    return OK;
}
