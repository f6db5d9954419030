// older gives way to newer + beta (newer - older), beta for each column.
// Matrices are (rows, columns) in C order; a thread takes one column and a chunk of rows. Reference: regress/kernels.py.
#ifndef REAL
#define REAL float
#endif

extern "C" __global__ void extrapolate(const REAL* __restrict__ newer, REAL* __restrict__ older, const REAL* __restrict__ beta,
                                       const long long rows, const long long columns, const long long chunk) {
    const long long t = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= columns) return;
    const long long first = (long long)blockIdx.y * chunk, last = first + chunk < rows ? first + chunk : rows;
    for (long long j = first; j < last; ++j) {
        const long long k = j * columns + t;
        older[k] = newer[k] + beta[t] * (newer[k] - older[k]);
    }
}
