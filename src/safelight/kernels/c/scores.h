/* Scores of attention.c as they are: words of the tensors' own numbers.
 *
 * They get their scale/ln 2 in the softmax, in float: q that has it already would be rounded to bfloat16 once more, which
 * large scores show.
 */
#pragma once
enum { IN_WORD = PER_WORD, CAUSAL = 1, MOST_D = 1 << 20 };

INLINE long key_floats(long d) { (void)d; return 0; }

/* Keys [keys][d] -> words without gaps. */
static void copy_keys(const Attention *a, const elem *k, word *to, float *steps, float *own) {
    long words = a->d / PER_WORD;
    (void)own;
    for (long i = 0; i < a->keys; i++, k += a->sk.token, to += words)
        for (long j = 0; j < words; j++) to[j] = pair(k[j * PER_WORD], k[j * PER_WORD + PER_WORD - 1]);
    for (long i = 0; i < ceil_div(a->keys, KEYS); i++) steps[i] = 1;
}

INLINE void pack_queries(const Attention *a, const elem *const rows[PANEL], State t) {
    pack_panel(rows, a->d / PER_WORD, t.q);
}

INLINE void scores(long n, const word *k, long words, const word *q, float *s) { gemm(n, k, words, 1, q, words, s, 0); }

/* m comes to the largest of n scores more; `fade` is by how much all before becomes less. */
INLINE void rise(const Attention *a, long n, const float *s, float step, State t, Octaves by[2], vf fade[2]) {
    vf factor = splat(a->scale * PER_OCTAVE), most[2] = {loadf(t.m), loadf(t.m + LANES)};
    (void)step;
    for (long i = 0; i < n; i++) for (int half = 0; half < 2; half++)
        most[half] = at_least(most[half], loadf(s + i * PANEL + half * LANES));
    for (int half = 0; half < 2; half++) {
        fade[half] = exp2v((loadf(t.m + half * LANES) - most[half]) * factor);
        storef(t.m + half * LANES, most[half]);
        by[half] = (Octaves){most[half], factor};
    }
}

INLINE vf octaves(const float *s, Octaves by) { return (loadf(s) - by.top) * by.factor; }
