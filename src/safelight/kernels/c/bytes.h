/* Numbers -> whole numbers from -127 to 127, of 8 bits, in steps of the largest one's 127th. */
#pragma once
#include "vec.h"

typedef int8_t vb __attribute__((vector_size(LANES)));
typedef struct { vf most, strange; } Range; /* of numbers seen: the largest size; NaN where one is NaN or infinite */
typedef struct { float step, inverse; } Steps;

INLINE Range unseen(void) { return (Range){splat(1e-30f), {}}; }
INLINE Range seen(Range r, vf v) { return (Range){at_least((vf)((vi)v & 0x7fffffff), r.most), r.strange + v * 0.f}; }

/* What a whole number is worth: NaN where the numbers had something strange. */
INLINE Steps steps_of(Range r) {
    float largest = r.most[0], nan = r.strange[0];
    for (int i = 1; i < LANES; i++) largest = r.most[i] > largest ? r.most[i] : largest, nan += r.strange[i];
    return (Steps){largest / 127 + nan, 1 / largest * 127}; /* in this order, so that twins round to the same numbers */
}

/* The low bytes of LANES whole numbers. Compilers take them one by one. */
INLINE void store_bytes(int8_t *p, vi v) {
#if defined(__AVX512F__) && LANES == 16
    vb b = (vb)_mm512_cvtepi32_epi8((__m512i)v);
#elif defined(__AVX2__) && LANES == 8
    v = v << 24 >> 24; /* the bytes that are kept, for what follows keeps whole numbers in range */
    __m128i w = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    vb b = (vb)_mm_cvtsi128_si64(_mm_packs_epi16(w, w));
#else
    vb b = __builtin_convertvector(v, vb);
#endif
    memcpy(p, &b, sizeof b);
}

INLINE void store_whole(int8_t *p, vf v, Steps s) {
    v = at_most(at_least(v * s.inverse, splat(-127)), splat(127));
    store_bytes(p, (vi)(v + 12582912.f)); /* 1.5·2^23: the low bits are now round(v) */
}
