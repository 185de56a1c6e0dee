/* Scores of attention.c from whole numbers of 8 bits: four products where pairs of bfloat16 make two.
 *
 *     k - mean  =  t·(K - 128)     K from 1 to 255, t for KEYS of them; the mean is of all keys of the head, and adds the
 *     q         =  s·Q             same to each score of a query: softmax does not see it. Q from -127 to 127, s for each
 *     score     =  s·t·(ΣKQ - 128·ΣQ)                                                                       query.
 *
 * Sums of whole numbers are exact, and float holds those of MOST_D of them. m is in octaves here, for t changes on the way.
 * Zhang et al. 2024, arXiv 2410.02367 ("SageAttention"), section 4.2: the mean is what made keys' outliers.
 */
#pragma once
#include "bytes.h"

enum { IN_WORD = 4, CAUSAL = 0, MOST_D = 512 }; /* 512·127·255 < 2^24 */

INLINE long padded(long d) { return ceil_div(d, LANES) * LANES; }
INLINE long key_floats(long d) { return (KEYS + 1) * padded(d); }

/* LANES numbers, or eight and zeros where no more are left: d is a multiple of eight. */
INLINE vf load_some(const elem *p, long left) {
#ifdef __AVX512BW__
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(left < LANES ? 0xff : 0xffff, p)), 16);
#else
    elem room[LANES] = {0};
    return load(left < LANES ? memcpy(room, p, 8 * sizeof *p) : p);
#endif
}

/* Keys [keys][d] -> K, and the t of each KEYS of them. */
static void copy_keys(const Attention *a, const elem *k, word *to, float *t, float *own) {
    long d = a->d, wide = padded(d), token = a->sk.token;
    float *mean = own, *less = own + wide;
    int8_t row[MOST_D];
    memset(mean, 0, wide * sizeof *mean);
    for (long i = 0; i < a->keys; i++) for (long j = 0; j < d; j += LANES)
        storef(mean + j, loadf(mean + j) + load_some(k + i * token + j, d - j));
    for (long j = 0; j < d; j += LANES) storef(mean + j, loadf(mean + j) / (float)a->keys);
    for (long i = 0; i < a->keys; i += KEYS) {
        long n = min(KEYS, a->keys - i);
        Range range = unseen();
        for (long r = 0; r < n; r++, k += token) for (long j = 0; j < d; j += LANES) {
            vf v = load_some(k + j, d - j) - loadf(mean + j);
            storef(less + r * wide + j, v);
            range = seen(range, v);
        }
        Steps steps = steps_of(range);
        *t++ = steps.step;
        for (long r = 0; r < n; r++, to += d / 4) {
            for (long j = 0; j < d; j += LANES) store_whole(row + j, loadf(less + r * wide + j), steps);
            memcpy(to, row, d);
            for (long j = 0; j < d / 4; j++) to[j] ^= 0x80808080; /* 128 more */
        }
    }
}

/* Queries -> Q, and s and 128·ΣQ of each. */
static void pack_queries(const Attention *a, const elem *const rows[PANEL], State t) {
    int8_t bytes[PANEL][MOST_D];
    const elem *whole[PANEL];
    for (long j = 0; j < PANEL; j++) {
        Range range = unseen();
        for (long i = 0; i < a->d; i += LANES) range = seen(range, load_some(rows[j] + i, a->d - i));
        Steps steps = steps_of(range);
        for (long i = 0; i < a->d; i += LANES) store_whole(bytes[j] + i, load_some(rows[j] + i, a->d - i), steps);
        t.step[j] = steps.step;
        whole[j] = (const elem *)bytes[j];
    }
    pack_panel(whole, a->d / 4, t.q);
    for (long half = 0; half < PANEL; half += LANES) {
        vi sum = {};
        for (long i = 0; i < a->d / 4; i++) sum = dot_bytes(sum, 0x01010101, (vi)load_words(t.q + i * PANEL + half));
        storef(t.zero + half, __builtin_convertvector(128 * sum, vf));
    }
}

INLINE void scores(long n, const word *k, long words, const word *q, float *s) {
    all_rows(n, k, words, 1, q, words, s, 0, 1);
}

INLINE vi sums(const float *s) { vi v; memcpy(&v, s, sizeof v); return v; }

/* As in scores.h, in octaves. */
INLINE void rise(const Attention *a, long n, const float *s, float step, State t, Octaves by[2], vf fade[2]) {
    vi most[2] = {sums(s), sums(s + LANES)};
    for (long i = 1; i < n; i++) for (int half = 0; half < 2; half++)
        most[half] = larger(most[half], sums(s + i * PANEL + half * LANES));
    for (int half = 0; half < 2; half++) {
        float *m = t.m + half * LANES;
        vf factor = loadf(t.step + half * LANES) * (step * a->scale * PER_OCTAVE), zero = loadf(t.zero + half * LANES);
        vf top = at_least((__builtin_convertvector(most[half], vf) - zero) * factor, loadf(m));
        fade[half] = exp2v(loadf(m) - top);
        storef(m, top);
        by[half] = (Octaves){top + zero * factor, factor};
    }
}

INLINE vf octaves(const float *s, Octaves by) { return __builtin_convertvector(sums(s), vf) * by.factor - by.top; }
