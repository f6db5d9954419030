// SAGA's proximal step and the update of its average, in one pass: w moves along mean + batches · change / m and is thresholded;
// mean becomes mean + change / m.
// The penalty's factors are (rows, factors), with one column for all targets or one for each.
// Matrices are (rows, columns) in C order; a thread takes one column and a chunk of rows. Reference: regress/kernels.py.
#ifndef REAL
#define REAL float
#endif

extern "C" __global__ void saga_step(REAL* __restrict__ w, REAL* __restrict__ mean, const REAL* __restrict__ change,
                                     const REAL m, const REAL batches, const REAL* __restrict__ lam,
                                     const REAL* __restrict__ penalty, const long long factors, const REAL step,
                                     const long long rows, const long long columns, const long long chunk) {
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= columns) return;
    const long long first = (long long)blockIdx.y * chunk, last = first + chunk < rows ? first + chunk : rows;
    const REAL scaled = lam[t] * step;
    for (long long j = first; j < last; ++j) {
        const long long k = j * columns + t;
        const REAL part = change[k] / m, x = w[k] + step * (mean[k] + batches * part), by = penalty[factors == 1 ? j : k] * scaled;
        w[k] = x > by ? x - by : (x < -by ? x + by : (REAL)0);
        mean[k] += part;
    }
}
