/* 3x3 convolution, stride 1, padding 1, channels last, by Winograd's minimal filtering: see winograd.h.
 *
 * Summed over input channels, the products of each of the 36 taps are one matrix product:
 *
 *       x (B, H, W, Ci)          V [Ci/KC][36][tiles][KC]
 *      .-.-.-.-.-.-.
 *      | . . . . . |  6x6, Bᵀ·B      +----------+     for each panel of output channels:
 *      | . 4x4 . . |  -------->  tap | tiles x KC |  ·  U [36][KC][PANEL]  =  M [36][tiles][PANEL]  -- Aᵀ·A -->  y
 *      | . . . . . |                 +----------+
 *      '-'-'-'-'-'-'                                     U = G g Gᵀ, made from the plain weights as it is needed
 *
 * U of a panel is recomputed for every chunk of tiles: that costs a few percent, and saves packed weights four times the
 * size of the plain ones, and the time to read them.
 */
#include "winograd.h"

enum { KC = 128, U_TAP = KC * PANEL + PAD };

typedef struct {
    const elem *x1, *x2;     /* inputs (batch, h, w, c1) and (batch, h, w, ci - c1): read as if joined by channels */
    const elem *weight;      /* (co, 3, 3, ci); or if turned (ci, 3, 3, co), for the gradient by the input */
    const float *bias;       /* (co), or (batch, co) with bias_step = co; may be NULL */
    const elem *residual;    /* like y, added before the activation; may be NULL */
    elem *y;                 /* (batch, h, w, co) */
    long batch, h, w, c1, ci, co, bias_step; /* h, w are y's: with `up`, twice x's */
    int turned, up, act;
} Conv;

/* The 6x6 inputs of one tile, all channels -> V. `v` is the tile's first word; `tap` and `block` are V's strides. */
static void transform_input(const Conv *c, long tile, word *v, long tap, long block) {
    long pixel[TAPS];
    inputs_of(place(c->h, c->w, tile), c->h, c->w, c->up, pixel);
    for (long ch = 0; ch < c->ci; ch += LANES) {
        int first = ch < c->c1;
        input_taps(first ? c->x1 + ch : c->x2 + (ch - c->c1), first ? c->c1 : c->ci - c->c1, pixel,
                   v + ch / KC * block + ch % KC, tap);
    }
}

/* Weights of PANEL output channels from `co` on, and n input channels from `ci` on -> U [36][KC][PANEL], taps U_TAP apart. */
static void transform_weights(const Conv *c, long co, long ci, long n, word *u) {
    float plain[9 * LANES * PANEL]; /* [9][LANES channels][PANEL] */
    for (long k = 0; k < n; k += LANES) {
        const elem *rows[PANEL];
        for (long t = 0; t < 9; t++) {
            float *to = plain + t * LANES * PANEL;
            if (c->turned) { /* by half a turn, and from channels out to channels in */
                for (long i = 0; i < LANES; i++) for (int half = 0; half < PANEL; half += LANES)
                    storef(to + i * PANEL + half, load(c->weight + ((ci + k + i) * 9 + 8 - t) * c->co + co + half));
                continue;
            }
            for (int j = 0; j < PANEL; j++) rows[j] = c->weight + ((co + j) * 9 + t) * c->ci + ci + k;
            pack_panel(rows, LANES, to);
        }
        for (int i = 0; i < LANES; i++) for (int half = 0; half < PANEL; half += LANES) {
            vf columns[6][3], g[3], o[6];
            UNROLL for (int x = 0; x < 3; x++) {
                UNROLL for (int y = 0; y < 3; y++) g[y] = loadf(plain + ((y * 3 + x) * LANES + i) * PANEL + half);
                weight_points(g, o);
                UNROLL for (int y = 0; y < 6; y++) columns[y][x] = o[y];
            }
            UNROLL for (int y = 0; y < 6; y++) {
                weight_points(columns[y], o);
                UNROLL for (int x = 0; x < 6; x++) storef(u + (y * 6 + x) * U_TAP + (k + i) * PANEL + half, o[x]);
            }
        }
    }
}

/* M of one tile and panel -> 4x4 outputs, with bias, residual and activation; what hangs over the edge is dropped. */
static void transform_output(const Conv *c, long tile, long co, const float *m, long tap) {
    Place p = place(c->h, c->w, tile);
    for (long ch = co; ch < co + PANEL; ch += LANES, m += LANES) {
        vf half[4][6], column[6], row[4];
        UNROLL for (int j = 0; j < 6; j++) {
            UNROLL for (int i = 0; i < 6; i++) column[i] = loadf(m + (i * 6 + j) * tap);
            from_points(column, row);
            UNROLL for (int i = 0; i < 4; i++) half[i][j] = row[i];
        }
        vf bias = c->bias ? loadf(c->bias + p.b * c->bias_step + ch) : (vf){};
        for (long i = 0; i < min(4, c->h - p.top); i++) {
            from_points(half[i], row);
            long at = ((p.b * c->h + p.top + i) * c->w + p.left) * c->co + ch;
            for (long j = 0; j < min(4, c->w - p.left); j++, at += c->co) {
                vf y = row[j] + bias;
                if (c->residual) y += load(c->residual + at);
                store(c->y + at, c->act ? silu(y) : y);
            }
        }
    }
}

/* One panel of output channels for n tiles from `first` on; their V begins at `v`. */
static void panel(const Conv *c, long co, long first, long n, const word *v, long tap, long block, word *u, float *m) {
    long m_tap = n * PANEL + PAD;
    for (long ci = 0; ci < c->ci; ci += KC, v += block) {
        long channels = min(KC, c->ci - ci);
        transform_weights(c, co, ci, channels, u);
        for (int t = 0; t < TAPS; t++)
            gemm(n, v + t * tap, KC, 1, u + t * U_TAP, channels, m + t * m_tap, ci > 0);
    }
    for (long t = 0; t < n; t++) transform_output(c, first + t, co, m + t * PANEL, m_tap);
}

int KERNEL(conv3x3)(const elem *x1, const elem *x2, const elem *weight, const float *bias, const elem *residual, elem *y,
                    long batch, long h, long w, long c1, long ci, long co, long bias_step, int turned, int up,
                    int act, int threads) {
    if (batch < 1 || h < 1 || w < 1 || threads < 1 || c1 < 1 || c1 > ci) return BAD_ARGUMENT;
    if (c1 % LANES || ci % LANES || co < PANEL || co % PANEL || (up && (h % 2 || w % 2))) return BAD_ARGUMENT;
    Conv c = {x1, x2, weight, bias, residual, y, batch, h, w, c1, ci, co, bias_step, turned, up, act};
    long tiles = batch * ceil_div(h, 4) * ceil_div(w, 4), panels = co / PANEL;
    long most = max(32, (6L << 20) / (TAPS * ci * 4)), chunks = ceil_div(tiles, most);
    long chunk = ceil_div(ceil_div(tiles, chunks), ROWS) * ROWS;   /* tiles whose V is in the cache at a time */
    long parts = min(ceil_div(2 * threads, panels), chunk / ROWS); /* of a chunk, where panels alone are too few */
    long part = ceil_div(chunk / ROWS, parts) * ROWS;
    long tap = chunk * KC + PAD, block = TAPS * tap;
    word *v = scratch(ceil_div(ci, KC) * block * sizeof *v);
    size_t u_size = TAPS * U_TAP, m_size = TAPS * (part * PANEL + PAD);
    float *own = scratch(threads * (u_size + m_size) * sizeof *own);
    if (!v || !own) { free(v); free(own); return NO_MEMORY; }
    large_pages(y, batch * h * w * co * sizeof *y);
#pragma omp parallel num_threads(threads)
    {
        word *u = own + thread_number() * (u_size + m_size);
        float *m = u + u_size;
        for (long first = 0; first < tiles; first += chunk) {
            long n = min(chunk, tiles - first);
#pragma omp for schedule(static)
            for (long t = 0; t < n; t++) transform_input(&c, first + t, v + t * KC, tap, block);
#pragma omp for schedule(dynamic, 1)
            for (long job = 0; job < panels * parts; job++) {
                long from = job % parts * part, count = min(part, n - from);
                if (count > 0)
                    panel(&c, job / parts * PANEL, first + from, count, v + from * KC, tap, block, u, m);
            }
        }
    }
    free(v);
    free(own);
    return OK;
}
