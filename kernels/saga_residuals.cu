// The residuals y - fitted of one batch go into their rows of SAGA's table; change is by how much they differ from what stood
// there.
// Matrices are (rows, columns) in C order; a thread takes one column and a chunk of rows. Reference: regress/kernels.py.
#ifndef REAL
#define REAL float
#endif

extern "C" __global__ void saga_residuals(const REAL* __restrict__ y, const REAL* __restrict__ fitted,
                                          REAL* __restrict__ table, REAL* __restrict__ change, const long long rows,
                                          const long long columns, const long long chunk) {
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= columns) return;
    const long long first = (long long)blockIdx.y * chunk, last = first + chunk < rows ? first + chunk : rows;
    for (long long i = first; i < last; ++i) {
        const long long k = i * columns + t;
        const REAL residual = y[k] - fitted[k];
        change[k] = residual - table[k];
        table[k] = residual;
    }
}
