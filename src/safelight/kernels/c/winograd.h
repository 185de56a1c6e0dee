/* Winograd's minimal filtering F(4x4, 3x3): the transforms that a convolution and its gradient share.
 *
 * A tile of 4x4 outputs y needs 6x6 inputs d. With polynomial interpolation at the points 0, ±a, ±b, infinity,
 *
 *     y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A                    36 products ("taps") instead of 144
 *
 * y is linear in the weights g, so what a loss changes by with them is the same walk backwards, from dy to dg:
 *
 *     dg = Gᵀ [ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G                  summed over tiles and pictures
 *
 * Points ±3/4, ±3/2 keep the numbers of all transforms near 1: fp32 errors are those of a direct sum (about 1e-6 of the
 * norm), where the textbook's ±1, ±2 lose a digit. Lanes are channels.
 *
 * Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", arXiv 1509.09308.
 */
#pragma once
#define FLOAT_WORDS /* the transforms amplify: bfloat16 is for the tensors alone */
#include "gemm.h"

enum { TAPS = 36, PAD = 48 }; /* PAD words between taps keep them from falling on the same cache lines */
#define A 0.75f
#define B 1.5f
#define AA (A * A)
#define BB (B * B)

INLINE void to_points(const vf d[6], vf o[6]) { /* Bᵀ d */
    vf even_a = d[4] - BB * d[2], odd_a = A * (d[3] - BB * d[1]);
    vf even_b = d[4] - AA * d[2], odd_b = B * (d[3] - AA * d[1]);
    o[0] = AA * BB * d[0] + (d[4] - (AA + BB) * d[2]);
    o[1] = even_a + odd_a;
    o[2] = even_a - odd_a;
    o[3] = even_b + odd_b;
    o[4] = even_b - odd_b;
    o[5] = AA * BB * d[1] + (d[5] - (AA + BB) * d[3]);
}

INLINE void from_points(const vf m[6], vf y[4]) { /* Aᵀ m */
    vf sum_a = m[1] + m[2], dif_a = m[1] - m[2], sum_b = m[3] + m[4], dif_b = m[3] - m[4];
    y[0] = m[0] + (sum_a + sum_b);
    y[1] = A * dif_a + B * dif_b;
    y[2] = AA * sum_a + BB * sum_b;
    y[3] = A * AA * dif_a + (B * BB * dif_b + m[5]);
}

INLINE void weight_points(const vf g[3], vf o[6]) { /* G g */
    const float a = 1 / (2 * AA * (AA - BB)), b = 1 / (2 * BB * (BB - AA));
    vf even_a = a * (g[0] + AA * g[2]), odd_a = a * A * g[1];
    vf even_b = b * (g[0] + BB * g[2]), odd_b = b * B * g[1];
    o[0] = 1 / (AA * BB) * g[0];
    o[1] = even_a + odd_a;
    o[2] = even_a - odd_a;
    o[3] = even_b + odd_b;
    o[4] = even_b - odd_b;
    o[5] = g[2];
}

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

typedef struct { long b, top, left; } Place; /* of a tile: its picture, and its first pixel */

INLINE Place place(long h, long w, long tile) {
    long across = ceil_div(w, 4), down = ceil_div(h, 4);
    return (Place){tile / (across * down), tile / across % down * 4, tile % across * 4};
}

/* Which pixels are the 6x6 inputs of a tile: -1 outside. With `up`, those of a map of half of h and w. */
INLINE void inputs_of(Place p, long h, long w, int up, long pixel[TAPS]) {
    for (int i = 0; i < 6; i++) for (int j = 0; j < 6; j++) {
        long row = p.top - 1 + i, col = p.left - 1 + j;
        int inside = row >= 0 && col >= 0 && row < h && col < w;
        long found = up ? (p.b * (h / 2) + row / 2) * (w / 2) + col / 2 : (p.b * h + row) * w + col;
        pixel[i * 6 + j] = inside ? found : -1;
    }
}

/* LANES channels of those pixels of x, which has `channels` of them, -> their 36 taps, `tap` words apart. */
INLINE void input_taps(const elem *x, long channels, const long pixel[TAPS], word *to, long tap) {
    static const elem zeros[LANES];
    vf half[6][6], column[6], row[6];
    UNROLL for (int j = 0; j < 6; j++) {
        UNROLL for (int i = 0; i < 6; i++) {
            long at = pixel[i * 6 + j];
            column[i] = load(at < 0 ? zeros : x + at * channels);
        }
        to_points(column, row);
        UNROLL for (int i = 0; i < 6; i++) half[i][j] = row[i];
    }
    UNROLL for (int i = 0; i < 6; i++) {
        to_points(half[i], row);
        UNROLL for (int j = 0; j < 6; j++) storef(to + (i * 6 + j) * tap, row[j]);
    }
}
