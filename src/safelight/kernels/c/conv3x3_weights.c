/* The gradient of a 3x3 convolution by its weights, in Winograd's domain: see winograd.h.
 *
 *     dg = Gᵀ [ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G
 *
 * Summed over tiles, the products of each of the 36 taps are one matrix product, of all channels out with all in:
 *
 *       dy (B, H, W, Co)      D [36][tiles][Co]                  for each panel of input channels:
 *      | 4x4 |  -- A·Aᵀ -->   tap | tiles x Co |
 *                                               tap:  Dᵀ · V  +=  S [Ci/PANEL][36][Co][PANEL]   -- Gᵀ·G -->  dg
 *       x (B, H, W, Ci)       V [Ci/PANEL][36][tiles][PANEL]
 *      | 6x6 |  -- Bᵀ·B -->
 *
 * A chunk of tiles is taken at a time, so that D and V stay in the cache. S is four times the weights it is of: where
 * these are many, input channels are taken in groups, D being made again for each.
 */
#define FLOAT_WORDS /* in every variant: a tile is of 4x4, in float */
#include "winograd.h"

INLINE void from_points_back(const vf y[4], vf m[6]) { /* A y */
    vf even_a = y[0] + AA * y[2], odd_a = A * (y[1] + AA * y[3]);
    vf even_b = y[0] + BB * y[2], odd_b = B * (y[1] + BB * y[3]);
    m[0] = y[0];
    m[1] = even_a + odd_a;
    m[2] = even_a - odd_a;
    m[3] = even_b + odd_b;
    m[4] = even_b - odd_b;
    m[5] = y[3];
}

INLINE void weight_points_back(const vf o[6], vf g[3]) { /* Gᵀ o */
    const float a = 1 / (2 * AA * (AA - BB)), b = 1 / (2 * BB * (BB - AA));
    vf sum_a = a * (o[1] + o[2]), sum_b = b * (o[3] + o[4]);
    g[0] = 1 / (AA * BB) * o[0] + (sum_a + sum_b);
    g[1] = a * A * (o[1] - o[2]) + b * B * (o[3] - o[4]);
    g[2] = AA * sum_a + (BB * sum_b + o[5]);
}

typedef struct {
    const elem *x, *dy;      /* (batch, h, w, ci) and (batch, h, w, co) */
    long h, w, ci, co;
} Gradient;

/* The 6x6 inputs of one tile, `wide` channels -> V. */
static void transform_input(const Gradient *g, long tile, long wide, word *v, long tap) {
    long pixel[TAPS];
    inputs_of(place(g->h, g->w, tile), g->h, g->w, 0, pixel);
    for (long ch = 0; ch < wide; ch += LANES)
        input_taps(g->x + ch, g->ci, pixel, v + ch / PANEL * TAPS * tap + ch % PANEL, tap);
}

/* The 4x4 gradients of one tile, all channels -> D; what hangs over the edge counts as zero. */
static void transform_gradient(const Gradient *g, long tile, word *d, long tap) {
    Place p = place(g->h, g->w, tile);
    for (long ch = 0; ch < g->co; ch += LANES) {
        vf half[6][4], column[4], row[6];
        UNROLL for (int j = 0; j < 4; j++) {
            UNROLL for (int i = 0; i < 4; i++) {
                int inside = p.top + i < g->h && p.left + j < g->w;
                column[i] = inside ? load(g->dy + ((p.b * g->h + p.top + i) * g->w + p.left + j) * g->co + ch) : (vf){};
            }
            from_points_back(column, row);
            UNROLL for (int i = 0; i < 6; i++) half[i][j] = row[i];
        }
        UNROLL for (int i = 0; i < 6; i++) {
            from_points_back(half[i], row);
            UNROLL for (int j = 0; j < 6; j++) storef(d + (i * 6 + j) * tap + ch, row[j]);
        }
    }
}

/* The sums of one output channel and LANES input channels -> dw (3, 3, ci) from that channel on. */
static void transform_sums(const Gradient *g, const float *s, long tap, elem *dw) {
    vf half[3][6], column[6], row[3];
    UNROLL for (int j = 0; j < 6; j++) {
        UNROLL for (int i = 0; i < 6; i++) column[i] = loadf(s + (i * 6 + j) * tap);
        weight_points_back(column, row);
        UNROLL for (int i = 0; i < 3; i++) half[i][j] = row[i];
    }
    UNROLL for (int i = 0; i < 3; i++) {
        weight_points_back(half[i], row);
        UNROLL for (int j = 0; j < 3; j++) store(dw + (i * 3 + j) * g->ci, row[j]);
    }
}

/* dw for the `wide` input channels that x and dw begin with. `room` holds D, V and S, in this order. */
static void group(const Gradient *g, long tiles, long chunk, long wide, elem *dw, float *room) {
    long panels = wide / PANEL, d_tap = chunk * g->co + PAD, v_tap = chunk * PANEL + PAD, s_tap = g->co * PANEL;
    word *d = room, *v = d + TAPS * d_tap;
    float *s = v + panels * TAPS * v_tap;
    for (long first = 0; first < tiles; first += chunk) {
        long n = min(chunk, tiles - first);
#pragma omp for schedule(static)
        for (long t = 0; t < n; t++) {
            transform_gradient(g, first + t, d + t * g->co, d_tap);
            transform_input(g, first + t, wide, v + t * PANEL, v_tap);
        }
#pragma omp for schedule(static)
        for (long job = 0; job < panels * TAPS; job++)
            gemm(g->co, d + job % TAPS * d_tap, 1, g->co, v + job * v_tap, n, s + job * s_tap, first > 0);
    }
#pragma omp for schedule(static)
    for (long out = 0; out < g->co; out++) for (long ch = 0; ch < wide; ch += LANES)
        transform_sums(g, s + ch / PANEL * TAPS * s_tap + out * PANEL + ch % PANEL, s_tap, dw + out * 9 * g->ci + ch);
}

int KERNEL(conv3x3_weights)(const elem *x, const elem *dy, elem *dw, long batch, long h, long w, long ci, long co,
                            int threads) {
    if (batch < 1 || h < 1 || w < 1 || threads < 1 || ci < PANEL || ci % PANEL || co < LANES || co % LANES)
        return BAD_ARGUMENT;
    long tiles = tiles_of(batch, h, w);
    long most = min(ci, max(1, (32L << 20) / (TAPS * co * PANEL * 4)) * PANEL); /* input channels of a group */
    long chunk = min(tiles, max(32, (6L << 20) / (TAPS * (most + co) * 4)));
    size_t inputs = most / PANEL * TAPS * (chunk * PANEL + PAD), gradients = TAPS * (chunk * co + PAD);
    float *room = scratch((gradients + inputs + TAPS * co * most) * sizeof *room);
    if (!room) return NO_MEMORY;
#pragma omp parallel num_threads(threads)
    for (long from = 0; from < ci; from += most) {
        Gradient g = {x + from, dy, h, w, ci, co};
        group(&g, tiles, chunk, min(most, ci - from), dw + from, room);
    }
    free(room);
    return OK;
}
