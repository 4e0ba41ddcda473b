// SPDX-License-Identifier: Apache-2.0
#include "twin/cube.h"

namespace twin {

namespace {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define TWIN_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define TWIN_CLONES
#endif

constexpr uint32_t kWidth = 16;  // columns and depth of a block
constexpr uint32_t kTogether = 4;

/// `count` rows of 16 columns. Every element is summed in the same order whatever `count` is.
template <typename N, uint32_t count>
inline __attribute__((always_inline)) void Rows(const N* a, const N* b, N* c, uint32_t k, bool clear) {
    N total[count][kWidth];
    for (uint32_t r = 0; r < count; ++r) {
        for (uint32_t i = 0; i < kWidth; ++i) total[r][i] = clear ? N{} : c[r * kWidth + i];
    }
    for (uint32_t block = 0; block < k; block += kWidth) {
        N sum[count][kWidth] = {};
        for (uint32_t step = 0; step < kWidth; ++step) {
            const N* right = b + (block + step) * kWidth;
            for (uint32_t r = 0; r < count; ++r) {
                const N left = a[r * k + block + step];
                for (uint32_t i = 0; i < kWidth; ++i) sum[r][i] = sum[r][i] + left * right[i];
            }
        }
        for (uint32_t r = 0; r < count; ++r) {
            for (uint32_t i = 0; i < kWidth; ++i) total[r][i] = total[r][i] + sum[r][i];
        }
    }
    for (uint32_t r = 0; r < count; ++r) {
        for (uint32_t i = 0; i < kWidth; ++i) c[r * kWidth + i] = total[r][i];
    }
}

template <typename N>
inline __attribute__((always_inline)) void Columns(const N* a, const N* b, N* c, uint32_t m, uint32_t rows, uint32_t n, uint32_t k, bool clear) {
    for (uint32_t column = 0; column < n; column += kWidth) {
        const N* right = b + static_cast<size_t>(column) * k;
        N* target = c + static_cast<size_t>(column) * rows;
        uint32_t row = 0;
        for (; row + kTogether <= m; row += kTogether) Rows<N, kTogether>(a + static_cast<size_t>(row) * k, right, target + row * kWidth, k, clear);
        for (; row < m; ++row) Rows<N, 1>(a + static_cast<size_t>(row) * k, right, target + row * kWidth, k, clear);
    }
}

}  // namespace

TWIN_CLONES __attribute__((optimize("O3")))
void MultiplyBlocks(const float* a, const float* b, float* c, uint32_t m, uint32_t rows, uint32_t n, uint32_t k, bool clear) {
    Columns(a, b, c, m, rows, n, k, clear);
}

TWIN_CLONES __attribute__((optimize("O3")))
void MultiplyBlocks(const int32_t* a, const int32_t* b, int32_t* c, uint32_t m, uint32_t rows, uint32_t n, uint32_t k, bool clear) {
    // Unsigned, because the device wraps and signed overflow is undefined here.
    Columns(reinterpret_cast<const uint32_t*>(a), reinterpret_cast<const uint32_t*>(b), reinterpret_cast<uint32_t*>(c), m, rows, n, k, clear);
}

}  // namespace twin
