// Packed masks to numbers: bit j of a row (bit j % 8 of byte j / 8, little bit order) becomes column j, 0 or 1.
// The NumPy reference stands beside the launcher, in datamodels/regress/kernels.py.
#ifndef REAL
#define REAL float
#endif

extern "C" __global__ void unpack_bits(const unsigned char* __restrict__ packed, REAL* __restrict__ out,
                                       const long long rows, const long long columns, const long long row_bytes) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long k = (long long)blockIdx.x * blockDim.x + threadIdx.x; k < rows * columns; k += stride) {
        const long long row = k / columns, column = k - row * columns;
        out[k] = (REAL)((packed[row * row_bytes + (column >> 3)] >> (column & 7)) & 1);
    }
}
