// Products with weights narrower than the arithmetic, which is float32: they are widened on their way into the
// registers, so that half the bytes are read. Compiled without -fassociative-math: the compiler would regroup two
// products added to one sum into a product, another and an addition, and run out of registers.

#include <algorithm>

#include "vectors.h"

namespace {

// Sums of 16 lanes that registers keep beside what is being read.
#if defined(__AVX512F__)
constexpr int kMaxSums = 16;
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int kMaxSums = 5;
#else
constexpr int kMaxSums = 3;
#endif

// out[row] = bias + summand[row] + weight x[row], where weights are panels of 16 outputs, [N / 16][K / 2][16][2]:
// a lane is an output, and a panel stays in the nearest cache while all rows go through it.
template <typename S>
struct Product {
    float* out;
    const float *x, *bias, *summand;  // bias and summand may be missing
    const S* panels;
    int64_t num_rows, num_outputs, num_inputs;

    int64_t num_panels() const { return (num_outputs + kLanes - 1) / kLanes; }

    // P panels for R rows at once: enough sums in flight to hide the latency of each, no more than stay in registers.
    template <int R, int P>
    void run(int64_t row, int64_t panel) const {
        int64_t num_pairs = (num_inputs + 1) / 2;
        const S* weights[P];
        for (int p = 0; p < P; p++) weights[p] = panels + std::min(panel + p, num_panels() - 1) * num_pairs * kPair;
        const float* from = x + row * num_inputs;
        Vec sums[P][R] = {};
        for (int64_t k = 0; k + 1 < num_inputs; k += 2)
            for (int p = 0; p < P; p++) {
                Pairs pairs = load_pairs(weights[p] + k * kLanes);
                for (int r = 0; r < R; r++) add_product(sums[p][r], pairs.even, from[r * num_inputs + k]);
                for (int r = 0; r < R; r++) add_product(sums[p][r], pairs.odd, from[r * num_inputs + k + 1]);
            }
        if (num_inputs % 2)
            for (int p = 0; p < P; p++) {
                Pairs pairs = load_pairs(weights[p] + (num_inputs - 1) * kLanes);
                for (int r = 0; r < R; r++) add_product(sums[p][r], pairs.even, from[(r + 1) * num_inputs - 1]);
            }
        for (int p = 0; p < P && panel + p < num_panels(); p++)
            for (int r = 0; r < R; r++) finish(sums[p][r], row + r, (panel + p) * kLanes);
    }

    void finish(const Vec& sum, int64_t row, int64_t first) const {
        float lanes[kLanes];
        std::memcpy(lanes, &sum, sizeof lanes);
        int64_t count = std::min<int64_t>(kLanes, num_outputs - first), at = row * num_outputs + first;
        if (bias) for (int64_t i = 0; i < count; i++) lanes[i] += bias[first + i];
        if (summand) for (int64_t i = 0; i < count; i++) lanes[i] += summand[at + i];
        std::memcpy(out + at, lanes, count * sizeof(float));
    }

    static constexpr int panels_at_once(int rows) {  // they divide an item's
        return kMaxSums >= 4 * rows ? 4 : kMaxSums >= 2 * rows ? 2 : 1;
    }

    // Rows [row, end) of panels [panel, until), R rows at once or fewer: as even a split as there is.
    template <int R>
    void run_rows(int64_t row, int64_t end, int64_t panel, int64_t until, int64_t num_tiles) const {
        constexpr int P = panels_at_once(R);
        for (; num_tiles > 0 && (end - row) > (R - 1) * num_tiles; row += R, num_tiles--)
            for (int64_t p = panel; p < until; p += P) run<R, P>(row, p);
        if constexpr (R > 1) if (row < end) run_rows<R - 1>(row, end, panel, until, num_tiles);
    }
};

constexpr int64_t kItemPanels = 4, kItemRows = 96;  // of what one thread takes at a time
constexpr int kRowsAtOnce = std::min(12, kMaxSums);

template <typename S>
void multiply(const Product<S>& product) {
    int64_t panel_items = (product.num_panels() + kItemPanels - 1) / kItemPanels;
    int64_t row_items = (product.num_rows + kItemRows - 1) / kItemRows;
#pragma omp parallel for num_threads(helios_num_threads) schedule(static) collapse(2)
    for (int64_t i = 0; i < row_items; i++)
        for (int64_t j = 0; j < panel_items; j++) {
            int64_t row = i * kItemRows, end = std::min(product.num_rows, row + kItemRows);
            int64_t panel = j * kItemPanels, until = std::min(product.num_panels(), panel + kItemPanels);
            int64_t num_tiles = (end - row + kRowsAtOnce - 1) / kRowsAtOnce;
            product.template run_rows<kRowsAtOnce>(row, end, panel, until, num_tiles);
        }
}

}  // namespace

#define HELIOS_PRODUCT(NAME, S)                                                                                  \
    extern "C" void multiply_##NAME(float* out, const float* x, const float* bias, const float* summand,         \
                                    const S* panels, int64_t num_rows, int64_t num_outputs,                      \
                                    int64_t num_inputs) {                                                        \
        multiply<S>({out, x, bias, summand, panels, num_rows, num_outputs, num_inputs});                         \
    }

HELIOS_PRODUCT(f16, float16)
HELIOS_PRODUCT(bf16, bfloat16)
