/* Winograd's minimal filtering F(TALL x WIDE, 3x3): the transforms that a convolution and its gradient share.
 *
 * A tile of TALL x WIDE outputs y needs DOWN x ACROSS inputs d, two more each way. By polynomial interpolation, at as many
 * points as there are inputs to a side,
 *
 *     y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A                 DOWN·ACROSS products ("taps") instead of 9·TALL·WIDE
 *
 *     words              tiles  products for an output   points of a side of 4, and of 2
 *     float              4 x 4  36/16, not 9             0, ±3/4, ±3/2, infinity
 *     pairs of bfloat16  2 x 4  24/8                     0, ±5/8, ±3/2, infinity; 0, ±1, infinity
 *
 * Pairs are where the CPU multiplies two at once.
 * y is linear in the weights g, so what a loss changes by with them is the same walk backwards, from dy to dg:
 *
 *     dg = Gᵀ [ (A dy Aᵀ) ⊙ (Bᵀ d B) ] G               summed over tiles and pictures
 *
 * These points keep the numbers of all transforms near 1: fp32 errors are those of a direct sum (about 1e-6 of the norm),
 * where the textbook's ±1, ±2 lose a digit. In bfloat16, where rounding the result alone is 1.7e-3, tiles of 2 x 4 are 7e-3
 * off; those of 4 x 4 would be 1.1e-2, those of 2 x 2 4e-3 for a third more products. Networks round so much between their
 * layers that as a whole they are hardly further off than torch's. Lanes are channels.
 *
 * Lavin & Gray 2016, "Fast algorithms for convolutional neural networks", arXiv 1509.09308.
 */
#pragma once
#include "gemm.h"

#ifndef TALL_OF_PAIRS
#define TALL_OF_PAIRS 2
#endif
#ifndef WIDE_OF_PAIRS
#define WIDE_OF_PAIRS 4
#endif
#if defined(PAIRS) && !defined(FLOAT_WORDS)
enum { TALL = TALL_OF_PAIRS, WIDE = WIDE_OF_PAIRS };
#define A 0.625f
#else
enum { TALL = 4, WIDE = 4 };
#define A 0.75f
#endif
#define B 1.5f
enum { DOWN = TALL + 2, ACROSS = WIDE + 2, TAPS = DOWN * ACROSS }; /* inputs of a tile */
enum { PAD = 48 }; /* words between taps keep them from the same cache lines */
#define AA (A * A)
#define BB (B * B)

INLINE void to_points(int tile, const vf *d, vf *o) { /* Bᵀ d */
    if (tile == 2) {
        o[0] = d[0] - d[2];
        o[1] = d[1] + d[2];
        o[2] = d[2] - d[1];
        o[3] = d[1] - d[3];
        return;
    }
    vf even_a = d[4] - BB * d[2], odd_a = A * (d[3] - BB * d[1]);
    vf even_b = d[4] - AA * d[2], odd_b = B * (d[3] - AA * d[1]);
    o[0] = AA * BB * d[0] + (d[4] - (AA + BB) * d[2]);
    o[1] = even_a + odd_a;
    o[2] = even_a - odd_a;
    o[3] = even_b + odd_b;
    o[4] = even_b - odd_b;
    o[5] = AA * BB * d[1] + (d[5] - (AA + BB) * d[3]);
}

INLINE void from_points(int tile, const vf *m, vf *y) { /* Aᵀ m */
    if (tile == 2) {
        y[0] = m[0] + (m[1] + m[2]);
        y[1] = (m[1] - m[2]) - m[3];
        return;
    }
    vf sum_a = m[1] + m[2], dif_a = m[1] - m[2], sum_b = m[3] + m[4], dif_b = m[3] - m[4];
    y[0] = m[0] + (sum_a + sum_b);
    y[1] = A * dif_a + B * dif_b;
    y[2] = AA * sum_a + BB * sum_b;
    y[3] = A * AA * dif_a + (B * BB * dif_b + m[5]);
}

INLINE void weight_points(int tile, const vf g[3], vf *o) { /* G g */
    if (tile == 2) {
        vf even = 0.5f * (g[0] + g[2]), odd = 0.5f * g[1];
        o[0] = g[0];
        o[1] = even + odd;
        o[2] = even - odd;
        o[3] = g[2];
        return;
    }
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

typedef struct { long b, top, left; } Place; /* of a tile: its picture, and its first pixel */

INLINE long tiles_of(long batch, long h, long w) { return batch * ceil_div(h, TALL) * ceil_div(w, WIDE); }

INLINE Place place(long h, long w, long tile) {
    long across = ceil_div(w, WIDE), down = ceil_div(h, TALL);
    return (Place){tile / (across * down), tile / across % down * TALL, tile % across * WIDE};
}

/* Which pixels are the inputs of a tile: -1 outside. With `up`, those of a map of half of h and w. */
INLINE void inputs_of(Place p, long h, long w, int up, long pixel[TAPS]) {
    for (int i = 0; i < DOWN; i++) for (int j = 0; j < ACROSS; j++) {
        long row = p.top - 1 + i, col = p.left - 1 + j;
        int inside = row >= 0 && col >= 0 && row < h && col < w;
        long found = up ? (p.b * (h / 2) + row / 2) * (w / 2) + col / 2 : (p.b * h + row) * w + col;
        pixel[i * ACROSS + j] = inside ? found : -1;
    }
}

/* LANES channels of those pixels of x, which has `channels` of them, -> their taps, `tap` words apart. */
INLINE void input_taps(const elem *x, long channels, const long pixel[TAPS], word *to, long tap) {
    static const elem zeros[LANES];
    vf half[DOWN][ACROSS], column[DOWN], row[ACROSS];
    UNROLL for (int j = 0; j < ACROSS; j++) {
        UNROLL for (int i = 0; i < DOWN; i++) {
            long at = pixel[i * ACROSS + j];
            column[i] = load(at < 0 ? zeros : x + at * channels);
        }
        vf points[DOWN];
        to_points(TALL, column, points);
        UNROLL for (int i = 0; i < DOWN; i++) half[i][j] = points[i];
    }
    UNROLL for (int i = 0; i < DOWN; i++) {
        to_points(WIDE, half[i], row);
        UNROLL for (int j = 0; j < ACROSS; j++) store_as_words(to + (i * ACROSS + j) * tap, row[j]);
    }
}
