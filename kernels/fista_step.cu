// A proximal gradient step of FISTA for all targets: v gives way to the new weights, and for each target comes
// (v - new)·(new - w), whose sign says whether the momentum points uphill; partial[chunk][t] is the part of one chunk of rows.
// The penalty's factors are (rows, factors), with one column for all targets or one for each.
// Matrices are (rows, columns) in C order; a thread takes one column and a chunk of rows. Reference: regress/kernels.py.
#ifndef REAL
#define REAL float
#endif

extern "C" __global__ void fista_step(REAL* __restrict__ v, const REAL* __restrict__ gv, const REAL* __restrict__ c,
                                      const REAL* __restrict__ w, const REAL* __restrict__ lam,
                                      const REAL* __restrict__ penalty, const long long factors, const REAL step,
                                      double* __restrict__ partial, const long long rows, const long long columns,
                                      const long long chunk) {
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= columns) return;
    const long long first = (long long)blockIdx.y * chunk, last = first + chunk < rows ? first + chunk : rows;
    const REAL scaled = lam[t] * step;
    double uphill = 0;
    for (long long j = first; j < last; ++j) {
        const long long k = j * columns + t;
        const REAL old_v = v[k], x = old_v + (c[k] - gv[k]) * step, by = penalty[factors == 1 ? j : k] * scaled;
        const REAL new_w = x > by ? x - by : (x < -by ? x + by : (REAL)0);
        uphill += (double)((old_v - new_w) * (new_w - w[k]));
        v[k] = new_w;
    }
    partial[(long long)blockIdx.y * columns + t] = uphill;
}
