/* The few vector operations that the kernels are written in.
 *
 * A `vf` is LANES floats, in GCC's and Clang's portable vector types: + - * and comparisons work on it, and the compiler
 * picks the instructions (a product added is fused where the CPU can). Each kernel is compiled once per variant:
 *
 *     variant       LANES  tensors of  a product is                    of whole numbers, with WHOLE
 *     avx2          8      float       x·u                             two at once, VPMADDWD
 *     avx2_bf16     8      bfloat16    x·u, in float                   the same
 *     avx512        16     float       x·u                             the same
 *     avx512_vnni   16     float       x·u                             four at once, VPDPBUSD (VNNI)
 *     avx512_bf16   16     bfloat16    two at once, VDPBF16PS (PAIRS)  four at once
 *
 * An `elem` is what tensors hold: float, or bfloat16 as its 16 bits. A `word` is what one lane multiplies at a time: a
 * float, or with PAIRS two bfloat16 of neighbouring k, or with WHOLE two or four whole numbers. A `total` is what sums
 * are: float, or with WHOLE int32. Where the compiler may not use these instructions the same sums are spelled out: so
 * the tests run every variant's own code on any CPU with AVX2.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define KERNEL(name) JOIN(name, VARIANT) /* conv3x3 -> conv3x3_avx2 */

#ifdef _OPENMP
int omp_get_thread_num(void); /* its header belongs to one runtime; which runs is decided when the library is loaded */
#define thread_number() omp_get_thread_num()
#else
#define thread_number() 0
#endif

enum { OK = 0, BAD_ARGUMENT = 1, NO_MEMORY = 2 };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
typedef uint16_t vh __attribute__((vector_size(2 * LANES)));

INLINE vf splat(float x) { return x - (vf){}; }
INLINE vf loadf(const float *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void storef(float *p, vf v) { memcpy(p, &v, sizeof v); }
INLINE vf where(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
/* x, but at least low or at most high; x where it is NaN. (MAXPS gives its second operand where one is NaN.) */
#if defined(__AVX2__) && LANES == 8
INLINE vf at_least(vf x, vf low) { return (vf)_mm256_max_ps((__m256)low, (__m256)x); }
INLINE vf at_most(vf x, vf high) { return (vf)_mm256_min_ps((__m256)high, (__m256)x); }
#elif defined(__AVX512F__) && LANES == 16
INLINE vf at_least(vf x, vf low) { return (vf)_mm512_max_ps((__m512)low, (__m512)x); }
INLINE vf at_most(vf x, vf high) { return (vf)_mm512_min_ps((__m512)high, (__m512)x); }
#else
INLINE vf at_least(vf x, vf low) { return where(x < low, low, x); }
INLINE vf at_most(vf x, vf high) { return where(x > high, high, x); }
#endif
INLINE vi larger(vi a, vi b) {
#if defined(__AVX512F__) && LANES == 16
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#else
    return ((a > b) & a) | ((a <= b) & b);
#endif
}

#ifdef BF16
typedef uint16_t elem;
INLINE vf load(const elem *p) { vh h; memcpy(&h, p, sizeof h); return (vf)(__builtin_convertvector(h, vu) << 16); }
INLINE vu rounded(vf v) { /* to the nearest bfloat16, ties to even, in the low half; NaN stays NaN */
    vu u = (vu)v, even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    return (vu)where(v != v, (vf)((u >> 16) | 64), (vf)even);
}
#if defined(__AVX512BF16__) && LANES == 16
INLINE vh narrowed(vf v) { return (vh)_mm512_cvtneps_pbh((__m512)v); } /* denormal numbers become 0 */
#else
INLINE vh narrowed(vf v) { return __builtin_convertvector(rounded(v), vh); }
#endif
INLINE void store(elem *p, vf v) { vh h = narrowed(v); memcpy(p, &h, sizeof h); }
INLINE float scalar(elem x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE elem element(float f) {
    uint32_t u; memcpy(&u, &f, 4);
    return f != f ? (u >> 16) | 64 : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
#else
typedef float elem;
INLINE vf load(const elem *p) { return loadf(p); }
INLINE void store(elem *p, vf v) { storef(p, v); }
INLINE float scalar(elem x) { return x; }
INLINE elem element(float f) { return f; }
#endif

/* Four uint8 of x times four int8 of u. */
INLINE vi dot_bytes(vi sum, int32_t x, vi u) {
#if defined(__AVX512VNNI__) && LANES == 16
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(x), (__m512i)u);
#else
    for (int bit = 0; bit < 32; bit += 8) sum += ((x >> bit) & 255) * ((vi)((vu)u << (24 - bit)) >> 24);
    return sum;
#endif
}

#ifdef WHOLE /* a file asks for words of whole numbers */
typedef int32_t word, total;
typedef vi vw, vt;
#ifdef VNNI /* bytes */
enum { PER_WORD = 4 };
INLINE vt dot(vt sum, word x, vi u) { return dot_bytes(sum, x, u); }
#else /* two int16 */
enum { PER_WORD = 2 };
INLINE vt dot(vt sum, word x, vi u) {
#if defined(__AVX2__) && LANES == 8
    return sum + (vi)_mm256_madd_epi16(_mm256_set1_epi32(x), (__m256i)u);
#elif defined(__AVX512BW__) && LANES == 16
    return sum + (vi)_mm512_madd_epi16(_mm512_set1_epi32(x), (__m512i)u);
#else
    return sum + (int16_t)x * ((vi)((vu)u << 16) >> 16) + (x >> 16) * (u >> 16);
#endif
}
#endif
#else
typedef float total;
typedef vf vt;
#if defined(PAIRS) && !defined(FLOAT_WORDS) /* a file may ask for words of float in any variant */
typedef uint32_t word __attribute__((aligned(2), may_alias)); /* two elements, wherever a tensor begins */
typedef vu vw;
enum { PER_WORD = 2 };
INLINE word pair(elem first, elem second) { return first | (word)second << 16; }
#define BOTH 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
typedef uint16_t vhh __attribute__((vector_size(4 * LANES)));
INLINE void store_words(word *p, vf first, vf second) {
#if defined(__AVX512BF16__) && LANES == 16
    vhh w = (vhh)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    w = __builtin_shuffle(w, (vhh){BOTH});
#else
    vu w = rounded(first) | rounded(second) << 16;
#endif
    memcpy(p, &w, sizeof w);
}
INLINE vf load_as_words(const elem *p) { vf v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_as_words(word *p, vf v) { vh h = narrowed(v); memcpy(p, &h, sizeof h); }
INLINE void elements(vw w, vf of[PER_WORD]) { of[0] = (vf)(w << 16), of[1] = (vf)(w & 0xffff0000); }
INLINE vf dot(vf sum, word x, vu u) {
#if defined(__AVX512BF16__) && LANES == 16
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)u);
#else
    vu both = x - (vu){};
    sum += (vf)(both & 0xffff0000) * (vf)(u & 0xffff0000);
    return sum + (vf)(both << 16) * (vf)(u << 16);
#endif
}
#else
typedef float word;
typedef vf vw;
enum { PER_WORD = 1 };
INLINE word pair(elem first, elem second) { (void)second; return scalar(first); }
INLINE void store_words(word *p, vf first, vf second) { (void)second; storef(p, first); }
INLINE vf load_as_words(const elem *p) { return load(p); }
INLINE void store_as_words(word *p, vf v) { storef(p, v); }
INLINE void elements(vw w, vf of[PER_WORD]) { of[0] = w; }
INLINE vf dot(vf sum, word x, vf u) { return sum + x * u; }
#endif
/* LANES words that lie at p, of which `left` are to be read: zeros for the others. */
INLINE vf words_at(const elem *p, long left) {
#if defined(__AVX512F__) && defined(PAIRS) && !defined(FLOAT_WORDS)
    return (vf)_mm512_maskz_loadu_ps(left < LANES ? (1 << left) - 1 : 0xffff, p);
#else
    elem room[LANES * PER_WORD] = {0};
    return load_as_words(left < LANES ? memcpy(room, p, left * PER_WORD * sizeof *p) : p);
#endif
}
#endif
INLINE vw load_words(const word *p) { vw v; memcpy(&v, p, sizeof v); return v; }
INLINE vt load_total(const total *p) { vt v; memcpy(&v, p, sizeof v); return v; }
INLINE void store_total(total *p, vt v) { memcpy(p, &v, sizeof v); }

/* 2^t for t in [-126, 127]; beyond, the value at the end, or what is true. 2^(t - floor(t)) is a polynomial, as near as
 * one of its degree can be that is 1 at 0: 8e-8 relative, and for bfloat16, which keeps 4e-3, 9e-5. */
INLINE vf exp2v(vf t) {
#if defined(__AVX512DQ__) && LANES == 16
    vf f = (vf)_mm512_reduce_ps((__m512)t, _MM_FROUND_TO_NEG_INF);
#else
    t = at_most(at_least(t, splat(-126)), splat(127));
    vf shifted = (t - 0.5f) + 12582912.f; /* 1.5·2^23: the low bits are now floor(t) */
    vf f = t - (shifted - 12582912.f);
#endif
#ifdef BF16
    vf p = f * 7.7067055e-2f + 2.2764498e-1f;
    p = p * f + 6.9511679e-1f;
#else
    vf p = f * 1.86713028e-3f + 9.01702989e-3f;
    p = p * f + 5.57999134e-2f;
    p = p * f + 2.4016445e-1f;
    p = p * f + 6.93151312e-1f;
#endif
    p = p * f + 1.f;
#if defined(__AVX512DQ__) && LANES == 16
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)t); /* times 2^floor(t) */
#else
    return p * (vf)(((vu)shifted << 23) + 0x3f800000); /* a product, so that NaN stays NaN */
#endif
}
/* a / b for b from 1 on; for bfloat16 by a reciprocal that is 6e-5 off, where the CPU has one: division is slow. */
INLINE vf ratio(vf a, vf b) {
#if defined(BF16) && defined(__AVX512F__) && LANES == 16
    return a * (vf)_mm512_rcp14_ps((__m512)b);
#else
    return a / b;
#endif
}
INLINE vf silu(vf x) { return ratio(x, exp2v(x * -1.442695041f) + 1.f); }
/* x·sigmoid(1.702 x), CLIP's gelu. */
INLINE vf quick_gelu(vf x) { return ratio(x, exp2v(x * -2.45546696f) + 1.f); }
/* x·Φ(x). The error function's complement is Press et al., "Numerical Recipes" (1992), section 6.2, 1.2e-7 relative; for
 * bfloat16 Abramowitz & Stegun (1964), 7.1.25, 2.5e-5. */
INLINE vf gelu(vf x) {
    vf z = (vf)((vi)x & 0x7fffffff) * 0.70710678f;
#ifdef BF16
    vf t = ratio(splat(1), z * 0.47047f + 1.f);
    vf p = t * 0.7478556f - 0.0958798f;
    p = p * t + 0.3480242f;
    vf tail = t * p * exp2v(z * z * -1.442695041f); /* erfc(|x|/√2) */
#else
    vf t = 1.f / (z * 0.5f + 1.f);
    vf p = t * 0.17087277f - 0.82215223f;
    p = p * t + 1.48851587f;
    p = p * t - 1.13520398f;
    p = p * t + 0.27886807f;
    p = p * t - 0.18628806f;
    p = p * t + 0.09678418f;
    p = p * t + 0.37409196f;
    p = p * t + 1.00002368f;
    p = p * t - 1.26551223f;
    vf tail = t * exp2v((p - z * z) * 1.442695041f);
#endif
    return 0.5f * x * where(x < 0.f, tail, 2.f - tail);
}

/* LANES x LANES floats: b[j][i] = a[i][j]. log2(LANES) rounds of perfect shuffles. */
#if LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif
INLINE void transpose(vf a[LANES]) {
    vf b[LANES];
    UNROLL for (int step = 1; step < LANES; step *= 2) {
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            b[2 * i] = __builtin_shuffle(a[i], a[i + LANES / 2], (vi){LOW});
            b[2 * i + 1] = __builtin_shuffle(a[i], a[i + LANES / 2], (vi){HIGH});
        }
        UNROLL for (int i = 0; i < LANES; i++) a[i] = b[i];
    }
}

INLINE long min(long a, long b) { return a < b ? a : b; }
INLINE long max(long a, long b) { return a > b ? a : b; }
INLINE long ceil_div(long a, long b) { return (a + b - 1) / b; }
/* Where part k of n begins: parts differ by one at most, and the larger ones come first. */
INLINE long share(long all, long n, long k) { return k * (all / n) + min(k, all % n); }

/* Ask for large pages for memory not yet touched: the first touch of each small one costs as much as computing it. */
INLINE void large_pages(void *p, size_t bytes) {
    uintptr_t page = 1 << 21, from = ((uintptr_t)p + page - 1) & -page, to = ((uintptr_t)p + bytes) & -page;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE); /* advice: refusal is no error */
}

/* Scratch memory, the caller's to free. */
INLINE void *scratch(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, bytes < 1 << 20 ? 4096 : 1 << 21, bytes)) return NULL;
    large_pages(p, bytes);
    return p;
}
