// The sums of which the duality gap is made, in one pass over c, w and G w: c·w, w·Gw, sum p|w|, and max |c - Gw| / p, each as
// [chunk][t], the part of one chunk of rows.
// The penalty's factors are (rows, factors), with one column for all targets or one for each.
// Matrices are (rows, columns) in C order; a thread takes one column and a chunk of rows. Reference: regress/kernels.py.
#ifndef REAL
#define REAL float
#endif

extern "C" __global__ void gap_sums(const REAL* __restrict__ c, const REAL* __restrict__ w, const REAL* __restrict__ gw,
                                    const REAL* __restrict__ penalty, const long long factors, double* __restrict__ cw,
                                    double* __restrict__ wgw, double* __restrict__ norm, double* __restrict__ steepest,
                                    const long long rows, const long long columns, const long long chunk) {
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= columns) return;
    const long long first = (long long)blockIdx.y * chunk, last = first + chunk < rows ? first + chunk : rows;
    double sum_cw = 0, sum_wgw = 0, sum_norm = 0;
    REAL largest = 0;
    for (long long j = first; j < last; ++j) {
        const long long k = j * columns + t;
        const REAL size = w[k] < 0 ? -w[k] : w[k], slope = c[k] - gw[k], steep = (slope < 0 ? -slope : slope) / penalty[factors == 1 ? j : k];
        sum_cw += (double)(c[k] * w[k]);
        sum_wgw += (double)(w[k] * gw[k]);
        sum_norm += (double)(penalty[factors == 1 ? j : k] * size);
        largest = steep > largest ? steep : largest;
    }
    const long long at = (long long)blockIdx.y * columns + t;
    cw[at] = sum_cw;
    wgw[at] = sum_wgw;
    norm[at] = sum_norm;
    steepest[at] = (double)largest;
}
