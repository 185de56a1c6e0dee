/* softmax(q·kᵀ·scale)·v for each head, without the matrix of scores: "flash" attention, forward.
 *
 * Lanes are queries, so that the softmax over keys never crosses lanes. A job is PANELS·PANEL queries of one head; it
 * walks along the keys, KEYS at a time, and keeps for each query the largest score m, the sum s and the output O:
 *
 *                 PANEL queries
 *                +------------+
 *     Kb · Q  -> | S   KEYS x | -> P = 2^(S - m)  ->  O  [d][PANEL]  =  2^(m_old - m)·O + Vbᵀ·P
 *                +------------+                       s              =  2^(m_old - m)·s + ΣP
 *
 * Q is packed [d][PANEL]. K and V are copied once per head: rows without gaps, with PAIRS V in pairs of keys. Both
 * products are the loop of gemm.h: rows are keys in the first, and the d of V in the second. How K and Q become words,
 * and their products exponents, is in scores.h, or for attention_rough.c in scores_bytes.h.
 * q, k, v, o are (batch, length, heads, d) by strides, as the projections make them: nothing is transposed before.
 * If causal, a query sees the keys up to its own place: a panel ends with those of its last query, and the scores that
 * are not to be seen are set to the smallest there is.
 *
 * Dao et al. 2022, arXiv 2205.14135; Milakov & Gimelshein 2018, arXiv 1805.02867, for the running softmax.
 */
#include "gemm.h"

#ifndef ATTENTION
#define ATTENTION attention
#endif
enum { KEYS = 192, PANELS = 4 };
#define SMALLEST -3e38f
#define PER_OCTAVE 1.442695041f /* 1 / ln 2 */

typedef struct { long batch, head, token; } Strides; /* in elements */
typedef struct {
    const elem *q, *k, *v;
    elem *o;
    Strides sq, sk, sv, so;
    long heads, queries, keys, d;
    float scale;
    int causal;
} Attention;

typedef struct { /* what a thread keeps of one panel of queries */
    word *q;            /* [d / IN_WORD][PANEL] */
    float *o;           /* [d][PANEL] */
    float *m, *s;       /* [PANEL] each */
    float *step, *zero; /* [PANEL] each, for scores_bytes.h */
} State;

typedef struct { vf top, factor; } Octaves; /* what makes an exponent of 2 of a score, for LANES queries */

#ifdef ROUGH
#include "scores_bytes.h"
#else
#include "scores.h"
#endif

INLINE long state_floats(long d) { return (2 * d + 4) * PANEL; }
INLINE State state(float *p, long d) {
    float *rest = p + 2 * d * PANEL;
    return (State){(word *)p, p + d * PANEL, rest, rest + PANEL, rest + 2 * PANEL, rest + 3 * PANEL};
}

/* Values as words [keys / PER_WORD][d]: an odd last key is paired with zero. */
static void copy_values(const Attention *a, const elem *v, word *to) {
    for (long i = 0; i < a->keys; i += PER_WORD, v += PER_WORD * a->sv.token, to += a->d) {
        const elem *next = i + PER_WORD <= a->keys ? v + (PER_WORD - 1) * a->sv.token : NULL;
        for (long j = 0; j < a->d; j++) to[j] = pair(v[j], next ? next[j] : 0);
    }
}

static void begin(const Attention *a, const elem *q, long count, State t) {
    const elem *rows[PANEL];
    for (long j = 0; j < PANEL; j++) rows[j] = q + min(j, count - 1) * a->sq.token; /* lanes without a query repeat the last */
    pack_queries(a, rows, t);
    memset(t.o, 0, a->d * PANEL * sizeof *t.o);
    for (long j = 0; j < PANEL; j++) t.m[j] = SMALLEST, t.s[j] = 0;
}

/* Of the scores of n keys, hide those of the keys after a query. `ahead`: how far the first key is behind the first query. */
static void hide(long n, long ahead, float *s) {
    for (long i = max(0, ahead + 1); i < n; i++)
        for (long j = 0; j < min(PANEL, i - ahead); j++) s[i * PANEL + j] = SMALLEST;
}

/* Scores of n keys -> their exponentials, in place (as words: with PAIRS, of two keys), and m, s, O brought up to date. */
static void softmax(const Attention *a, long n, float *s, float step, State t) {
    Octaves by[2];
    vf sum[2] = {}, fade[2];
    rise(a, n, s, step, t, by, fade);
    for (long i = 0; i < n; i += PER_WORD) for (int half = 0; half < 2; half++) {
        const float *from = s + i * PANEL + half * LANES;
        vf p = exp2v(octaves(from, by[half])), next = {};
        if (PER_WORD == 2 && i + 1 < n) next = exp2v(octaves(from + PANEL, by[half]));
        sum[half] += p + next;
        store_words((word *)s + i / PER_WORD * PANEL + half * LANES, p, next); /* never beyond what has been read */
    }
    for (int half = 0; half < 2; half++) {
        float *all = t.s + half * LANES;
        storef(all, loadf(all) * fade[half] + sum[half]);
    }
    for (long i = 0; i < a->d; i++) for (int half = 0; half < 2; half++) {
        float *o = t.o + i * PANEL + half * LANES;
        storef(o, loadf(o) * fade[half]);
    }
}

static void finish(const Attention *a, elem *o, long count, State t) {
    for (long half = 0; half < PANEL; half += LANES) for (long d = 0; d < a->d; d += LANES) {
        vf rows[LANES], inverse = 1.f / loadf(t.s + half);
        long n = min(LANES, a->d - d);
        UNROLL for (int i = 0; i < LANES; i++) rows[i] = i < n ? loadf(t.o + (d + i) * PANEL + half) * inverse : (vf){};
        transpose(rows);
        UNROLL for (int j = 0; j < LANES; j++) if (half + j < count) {
            elem row[LANES];
            store(row, rows[j]);
            memcpy(o + (half + j) * a->so.token + d, row, n * sizeof *o);
        }
    }
}

/* Up to PANELS·PANEL queries of one head, from the place `first` on. */
static void queries(const Attention *a, const elem *q, elem *o, long first, long count, const word *k, const word *v,
                    const float *steps, float *own) {
    float *s = own + PANELS * state_floats(a->d);
    long d = a->d, words = d / IN_WORD, panels = ceil_div(count, PANEL);
    State t[PANELS];
    for (long p = 0; p < panels; p++) {
        t[p] = state(own + p * state_floats(d), d);
        begin(a, q + p * PANEL * a->sq.token, min(PANEL, count - p * PANEL), t[p]);
    }
    for (long i = 0; i < a->keys; i += KEYS) for (long p = 0; p < panels; p++) {
        long place = first + p * PANEL, n = min(KEYS, (a->causal ? min(a->keys, place + PANEL) : a->keys) - i);
        if (n <= 0) continue;
        scores(n, k + i * words, words, t[p].q, s);
        if (a->causal) hide(n, place - i, s);
        softmax(a, n, s, steps[i / KEYS], t[p]);
        gemm(d, v + i / PER_WORD * d, 1, d, (word *)s, ceil_div(n, PER_WORD), t[p].o, 1);
    }
    for (long p = 0; p < panels; p++) finish(a, o + p * PANEL * a->so.token, min(PANEL, count - p * PANEL), t[p]);
}

int KERNEL(ATTENTION)(const elem *q, const elem *k, const elem *v, elem *o, const long strides[12], long batch, long heads,
                      long queries_, long keys, long d, float scale, int causal, int threads) {
    if (batch < 1 || heads < 1 || queries_ < 1 || keys < 1 || d < 8 || d % 8 || d > MOST_D || threads < 1) return BAD_ARGUMENT;
    if (causal && !CAUSAL) return BAD_ARGUMENT;
    const long *t = strides;
    Attention a = {q, k, v, o, {t[0], t[1], t[2]}, {t[3], t[4], t[5]}, {t[6], t[7], t[8]}, {t[9], t[10], t[11]},
                   heads, queries_, keys, d, scale, causal};
    long in_k = keys * (d / IN_WORD), in_v = ceil_div(keys, PER_WORD) * d, in_steps = ceil_div(keys, KEYS); /* of a head */
    long all = batch * heads, size = PANELS * PANEL, blocks = ceil_div(queries_, size);
    long own_floats = PANELS * state_floats(d) + max(KEYS * PANEL, key_floats(d));
    word *ks = scratch(all * (in_k + in_v + in_steps) * sizeof *ks), *vs = ks + all * in_k;
    float *steps = (float *)(vs + all * in_v), *own = scratch(threads * own_floats * sizeof *own);
    if (!ks || !own) { free(ks); free(own); return NO_MEMORY; }
    large_pages(o, all * queries_ * d * sizeof *o);
#pragma omp parallel num_threads(threads)
    {
        float *mine = own + thread_number() * own_floats;
#pragma omp for schedule(static)
        for (long h = 0; h < all; h++) {
            long b = h / heads, i = h % heads;
            copy_keys(&a, k + b * a.sk.batch + i * a.sk.head, ks + h * in_k, steps + h * in_steps, mine);
            copy_values(&a, v + b * a.sv.batch + i * a.sv.head, vs + h * in_v);
        }
#pragma omp for schedule(dynamic, 1)
        for (long job = 0; job < all * blocks; job++) {
            long h = job / blocks, b = h / heads, i = h % heads, first = job % blocks * size;
            queries(&a, q + b * a.sq.batch + i * a.sq.head + first * a.sq.token,
                    o + b * a.so.batch + i * a.so.head + first * a.so.token, first, min(size, queries_ - first),
                    ks + h * in_k, vs + h * in_v, steps + h * in_steps, mine);
        }
    }
    free(ks);
    free(own);
    return OK;
}
