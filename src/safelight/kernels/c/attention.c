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
 * Scores get their scale/ln 2 in the softmax, in float: q that has it already would be rounded to bfloat16 once more,
 * which large scores show. Q is packed [d][PANEL]. K and V are copied once per head: rows without gaps, with
 * PAIRS V in pairs of keys. Both products are the loop of gemm.h: rows are keys in the first, and the d of V in the second.
 * q, k, v, o are (batch, length, heads, d) by strides, as the projections make them: nothing is transposed before.
 * If causal, a query sees the keys up to its own place: a panel ends with those of its last query, and the scores that
 * are not to be seen are set to the smallest there is.
 *
 * Dao et al. 2022, arXiv 2205.14135; Milakov & Gimelshein 2018, arXiv 1805.02867, for the running softmax.
 */
#include "gemm.h"

enum { KEYS = 192, PANELS = 4 };
#define SMALLEST -3e38f

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
    word *q;      /* [d / PER_WORD][PANEL] */
    float *o;     /* [d][PANEL] */
    float *m, *s; /* [PANEL] each */
} State;

INLINE long state_floats(long d) { return (2 * d + 2) * PANEL; }
INLINE State state(float *p, long d) { return (State){(word *)p, p + d * PANEL, p + 2 * d * PANEL, p + (2 * d + 1) * PANEL}; }

/* Keys [keys][d], and values [keys / PER_WORD][d], as words: an odd last key is paired with zero. */
static void copy_head(const Attention *a, const elem *k, const elem *v, word *k_to, word *v_to) {
    long words = a->d / PER_WORD;
    for (long i = 0; i < a->keys; i++, k += a->sk.token, k_to += words)
        for (long j = 0; j < words; j++) k_to[j] = pair(k[j * PER_WORD], k[j * PER_WORD + PER_WORD - 1]);
    for (long i = 0; i < a->keys; i += PER_WORD, v += PER_WORD * a->sv.token, v_to += a->d) {
        const elem *next = i + PER_WORD <= a->keys ? v + (PER_WORD - 1) * a->sv.token : NULL;
        for (long j = 0; j < a->d; j++) v_to[j] = pair(v[j], next ? next[j] : 0);
    }
}

static void begin(const Attention *a, const elem *q, long count, State t) {
    const elem *rows[PANEL];
    for (long j = 0; j < PANEL; j++) rows[j] = q + min(j, count - 1) * a->sq.token; /* lanes without a query repeat the last */
    pack_panel(rows, a->d / PER_WORD, t.q);
    memset(t.o, 0, a->d * PANEL * sizeof *t.o);
    for (long j = 0; j < PANEL; j++) t.m[j] = SMALLEST, t.s[j] = 0;
}

/* Of the scores of n keys, hide those of the keys after a query. `ahead`: how far the first key is behind the first query. */
static void hide(long n, long ahead, float *s) {
    for (long i = max(0, ahead + 1); i < n; i++)
        for (long j = 0; j < min(PANEL, i - ahead); j++) s[i * PANEL + j] = SMALLEST;
}

/* Scores of n keys -> their exponentials, in place (as words: with PAIRS, of two keys), and m, s, O brought up to date. */
static void softmax(const Attention *a, long n, float *s, State t) {
    vf factor = splat(a->scale * 1.442695041f), most[2] = {loadf(t.m), loadf(t.m + LANES)}, sum[2] = {}, fade[2];
    for (long i = 0; i < n; i++) for (int half = 0; half < 2; half++)
        most[half] = at_least(most[half], loadf(s + i * PANEL + half * LANES));
    for (long i = 0; i < n; i += PER_WORD) for (int half = 0; half < 2; half++) {
        const float *from = s + i * PANEL + half * LANES;
        vf p = exp2v((loadf(from) - most[half]) * factor), next = {};
        if (PER_WORD == 2 && i + 1 < n) next = exp2v((loadf(from + PANEL) - most[half]) * factor);
        sum[half] += p + next;
        store_words((word *)s + i / PER_WORD * PANEL + half * LANES, p, next); /* never beyond what has been read */
    }
    for (int half = 0; half < 2; half++) {
        float *m = t.m + half * LANES, *all = t.s + half * LANES;
        fade[half] = exp2v((loadf(m) - most[half]) * factor);
        storef(m, most[half]);
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
                    float *own) {
    float *s = own + PANELS * state_floats(a->d);
    long d = a->d, words = d / PER_WORD, panels = ceil_div(count, PANEL);
    State t[PANELS];
    for (long p = 0; p < panels; p++) {
        t[p] = state(own + p * state_floats(d), d);
        begin(a, q + p * PANEL * a->sq.token, min(PANEL, count - p * PANEL), t[p]);
    }
    for (long i = 0; i < a->keys; i += KEYS) for (long p = 0; p < panels; p++) {
        long place = first + p * PANEL, n = min(KEYS, (a->causal ? min(a->keys, place + PANEL) : a->keys) - i);
        if (n <= 0) continue;
        gemm(n, k + i * words, words, 1, t[p].q, words, s, 0);
        if (a->causal) hide(n, place - i, s);
        softmax(a, n, s, t[p]);
        gemm(d, v + i / PER_WORD * d, 1, d, (word *)s, ceil_div(n, PER_WORD), t[p].o, 1);
    }
    for (long p = 0; p < panels; p++) finish(a, o + p * PANEL * a->so.token, min(PANEL, count - p * PANEL), t[p]);
}

int KERNEL(attention)(const elem *q, const elem *k, const elem *v, elem *o, const long strides[12], long batch, long heads,
                      long queries_, long keys, long d, float scale, int causal, int threads) {
    if (batch < 1 || heads < 1 || queries_ < 1 || keys < 1 || d < 8 || d % 8 || threads < 1) return BAD_ARGUMENT;
    const long *t = strides;
    Attention a = {q, k, v, o, {t[0], t[1], t[2]}, {t[3], t[4], t[5]}, {t[6], t[7], t[8]}, {t[9], t[10], t[11]},
                   heads, queries_, keys, d, scale, causal};
    long even = ceil_div(keys, PER_WORD), words = d / PER_WORD, size = PANELS * PANEL, blocks = ceil_div(queries_, size);
    long own_floats = PANELS * state_floats(d) + KEYS * PANEL;
    word *ks = scratch(batch * heads * (keys * words + even * d) * sizeof *ks), *vs = ks + batch * heads * keys * words;
    float *own = scratch(threads * own_floats * sizeof *own);
    if (!ks || !own) { free(ks); free(own); return NO_MEMORY; }
    large_pages(o, batch * heads * queries_ * d * sizeof *o);
#pragma omp parallel num_threads(threads)
    {
        float *mine = own + thread_number() * own_floats;
#pragma omp for schedule(static)
        for (long h = 0; h < batch * heads; h++) {
            long b = h / heads, i = h % heads;
            copy_head(&a, k + b * a.sk.batch + i * a.sk.head, v + b * a.sv.batch + i * a.sv.head,
                      ks + h * keys * words, vs + h * even * d);
        }
#pragma omp for schedule(dynamic, 1)
        for (long job = 0; job < batch * heads * blocks; job++) {
            long h = job / blocks, b = h / heads, i = h % heads, first = job % blocks * size;
            queries(&a, q + b * a.sq.batch + i * a.sq.head + first * a.sq.token,
                    o + b * a.so.batch + i * a.so.head + first * a.so.token, first, min(size, queries_ - first),
                    ks + h * keys * words, vs + h * even * d, mine);
        }
    }
    free(ks);
    free(own);
    return OK;
}
