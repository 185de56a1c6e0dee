/* The one inner loop: a few rows times a panel of PANEL columns, kept in registers.
 *
 *          n words                  PANEL = 2·LANES
 *        +--------+                 +------+                  +------+
 *   rows |   x    |       x     n   |  u   |        +=        |  m   | rows
 *        +--------+                 +------+                  +------+
 *
 * u is packed, [n][PANEL]; m is [rows][PANEL] totals. x is where it lies: word k of row r is x[r·row + k·step]. Each
 * word of x is broadcast, each of u is loaded once for ROWS rows: two loads and ROWS broadcasts feed 2·ROWS products.
 * ROWS is what fills the registers: 6 of 16 (2·6 sums, 2 of u, 1 broadcast), 12 of 32.
 * Every element of m is one chain of sums in the order of k, so results do not depend on how work is split.
 * (Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication".)
 */
#pragma once
#include "vec.h"

enum { PANEL = 2 * LANES, ROWS = LANES == 8 ? 6 : 12 };

INLINE void few_rows(int rows, const word *x, long row, long step, const word *u, long n, total *m, int add, int bytes) {
    vt sum[ROWS][2];
    UNROLL for (int r = 0; r < rows; r++) {
        sum[r][0] = add ? load_total(m + r * PANEL) : (vt){};
        sum[r][1] = add ? load_total(m + r * PANEL + LANES) : (vt){};
    }
    for (long k = 0; k < n; k++, x += step, u += PANEL) {
        vw u0 = load_words(u), u1 = load_words(u + LANES);
        UNROLL for (int r = 0; r < rows; r++) {
            word w = x[r * row];
            sum[r][0] = bytes ? (vt)dot_bytes((vi)sum[r][0], w, (vi)u0) : dot(sum[r][0], w, u0);
            sum[r][1] = bytes ? (vt)dot_bytes((vi)sum[r][1], w, (vi)u1) : dot(sum[r][1], w, u1);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        store_total(m + r * PANEL, sum[r][0]);
        store_total(m + r * PANEL + LANES, sum[r][1]);
    }
}

/* The last rows are shared out evenly: few rows cannot hide the latency of a sum. */
INLINE void all_rows(long rows, const word *x, long row, long step, const word *u, long n, total *m, int add, int bytes) {
    while (rows > 0) {
        int r = rows >= 2 * ROWS ? ROWS : rows > ROWS ? (rows + 1) / 2 : rows;
#define CASE(R) case R: few_rows(R, x, row, step, u, n, m, add, bytes); break;
        switch (r) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if LANES == 16
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
#undef CASE
        rows -= r, x += r * row, m += r * PANEL;
    }
}

/* m = x·u, or m += x·u with `add`. */
static void gemm(long rows, const word *x, long row, long step, const word *u, long n, total *m, int add) {
    all_rows(rows, x, row, step, u, n, m, add, 0);
}

#ifndef WHOLE
/* Pack up to LANES neighbouring words of PANEL rows of a matrix, n of them: u[k][j] = rows[j][at + k]. */
INLINE void pack_block(const elem *const rows[PANEL], long at, long n, word *u) {
    for (int half = 0; half < PANEL; half += LANES) {
        vf a[LANES];
        UNROLL for (int j = 0; j < LANES; j++) a[j] = words_at(rows[half + j] + at * PER_WORD, n);
        transpose(a);
        UNROLL for (int i = 0; i < LANES; i++) if (i < n) storef((float *)(u + i * PANEL + half), a[i]);
    }
}

/* Pack n of them; whole blocks ask nothing about each word. */
INLINE void pack_panel(const elem *const rows[PANEL], long n, word *u) {
    long at = 0;
    for (; at + LANES <= n; at += LANES) pack_block(rows, at, LANES, u + at * PANEL);
    if (at < n) pack_block(rows, at, n - at, u + at * PANEL);
}
#endif
