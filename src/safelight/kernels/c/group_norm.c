/* Group normalisation, then SiLU if wanted, channels last (Wu & He 2018, arXiv 1803.08494).
 *
 *     x (batch, pixels, channels)      pass 1: mean and squares of each chunk and group
 *      +--------------------+          then:   y = (x - mean)·scale + bias, by channel
 *      | CHUNK pixels       | job      pass 2: x -> y, with the activation
 *      +--------------------+
 *      | CHUNK pixels       | job
 *      +--------------------+
 *
 * Squares are taken about each channel's first value in the chunk, and chunks are joined by Chan, Golub & LeVeque 1979
 * ("Updating formulae and a pairwise algorithm for computing sample variances"), in double and in order: a large mean
 * costs no digits, and results do not depend on the number of threads.
 */
#include "vec.h"

enum { CHUNK = 256 };

typedef struct { double n, mean, squares; } Moments; /* squares: of the differences from the mean, summed */

INLINE Moments join(Moments a, Moments b) {
    double n = a.n + b.n, d = b.mean - a.mean;
    if (n == 0) return a;
    return (Moments){n, a.mean + d * b.n / n, a.squares + b.squares + d * d * a.n * b.n / n};
}

static void measure(const elem *x, long pixels, long channels, long groups, float *sum, float *square, Moments *out) {
    memset(sum, 0, channels * sizeof *sum);
    memset(square, 0, channels * sizeof *square);
    for (long p = 1; p < pixels; p++) for (long c = 0; c < channels; c += LANES) {
        vf d = load(x + p * channels + c) - load(x + c);
        storef(sum + c, loadf(sum + c) + d);
        storef(square + c, loadf(square + c) + d * d);
    }
    for (long g = 0, c = 0; g < groups; g++) {
        out[g] = (Moments){0, 0, 0};
        for (long end = c + channels / groups; c < end; c++) {
            double s = sum[c], n = pixels;
            out[g] = join(out[g], (Moments){n, scalar(x[c]) + s / n, square[c] - s * s / n});
        }
    }
}

/* `factors` are the channels' means, then their scales, then their biases. */
static void apply(const elem *x, elem *y, long pixels, long channels, const float *factors, int act) {
    const float *scale = factors + channels, *bias = scale + channels;
    for (; pixels > 0; pixels--, x += channels, y += channels) for (long c = 0; c < channels; c += LANES) {
        vf v = (load(x + c) - loadf(factors + c)) * loadf(scale + c) + loadf(bias + c);
        store(y + c, act ? silu(v) : v);
    }
}

int KERNEL(group_norm)(const elem *x, const float *weight, const float *bias, elem *y, long batch, long pixels,
                       long channels, long groups, float eps, int act, int threads) {
    if (batch < 1 || pixels < 1 || groups < 1 || threads < 1) return BAD_ARGUMENT;
    if (channels < LANES || channels % LANES || channels % groups) return BAD_ARGUMENT;
    long chunks = ceil_div(pixels, CHUNK), jobs = batch * chunks, wide = channels / groups;
    Moments *moments = scratch(jobs * groups * sizeof *moments);
    float *own = scratch((2 * threads + 3 * batch) * channels * sizeof *own), *factors = own + 2 * threads * channels;
    if (!moments || !own) { free(moments); free(own); return NO_MEMORY; }
    large_pages(y, batch * pixels * channels * sizeof *y);
#pragma omp parallel num_threads(threads)
    {
        float *mine = own + 2 * thread_number() * channels;
#pragma omp for schedule(static)
        for (long j = 0; j < jobs; j++) {
            long first = j % chunks * CHUNK, at = (j / chunks * pixels + first) * channels;
            measure(x + at, min(CHUNK, pixels - first), channels, groups, mine, mine + channels, moments + j * groups);
        }
#pragma omp for schedule(static)
        for (long bg = 0; bg < batch * groups; bg++) {
            long b = bg / groups, g = bg % groups;
            Moments all = {0, 0, 0};
            for (long c = 0; c < chunks; c++) all = join(all, moments[(b * chunks + c) * groups + g]);
            double r = 1 / sqrt(fmax(all.squares / all.n, 0) + eps);
            if (all.squares != all.squares) r = all.squares; /* NaN, which fmax hides */
            float *f = factors + 3 * b * channels;
            for (long c = g * wide; c < (g + 1) * wide; c++) {
                f[c] = all.mean;
                f[channels + c] = weight ? weight[c] * r : r;
                f[2 * channels + c] = bias ? bias[c] : 0;
            }
        }
#pragma omp for schedule(static)
        for (long j = 0; j < jobs; j++) {
            long first = j % chunks * CHUNK, at = (j / chunks * pixels + first) * channels;
            const float *f = factors + 3 * (j / chunks) * channels;
            apply(x + at, y + at, min(CHUNK, pixels - first), channels, f, act);
        }
    }
    free(moments);
    free(own);
    return OK;
}
