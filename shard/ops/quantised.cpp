// Products with quantised weights: codes of 4 or 8 bits with a scale, and perhaps a minimum, for each group of 16
// or 32 inputs. Activations are quantised on their way in, so that groups are summed in whole numbers, as
// llama.cpp does. Compiled without -fassociative-math, as products.cpp is, for the same reason.

#include <algorithm>
#include <cmath>
#include <vector>

#include "integers.h"
#include "vectors.h"

namespace {

// Activations of one group in one row: x = scale * whole number, each of one or two digits of 8 bits.
struct GroupFacts {
    float scale, scaled_sum;  // scaled_sum: sum of the group's activations
    int32_t sum;              // of its whole numbers
};

constexpr int kDigitBits = 8, kMaxDigit = 127;

// Rows of activations as whole numbers, [row][group][digit][G], the higher digit first. Inputs beyond the last are 0.
template <int G, int D>
struct Activations {
    int64_t num_groups;
    std::vector<int8_t>& digits;
    std::vector<GroupFacts>& facts;

    const int8_t* digits_of(int64_t row) const { return digits.data() + row * num_groups * D * G; }
    const GroupFacts* facts_of(int64_t row) const { return facts.data() + row * num_groups; }

    void quantise(int64_t row, const float* x, int64_t num_inputs, float factor) {
        for (int64_t group = 0; group < num_groups; group++) {
            float numbers[G] = {};
            int64_t first = group * G, count = std::min<int64_t>(G, num_inputs - first);
            std::memcpy(numbers, x + first, count * sizeof(float));
            int64_t at = row * num_groups + group;
            facts[at] = quantise_group(numbers, digits.data() + at * D * G, factor);
        }
    }

    static GroupFacts quantise_group(const float* numbers, int8_t* to, float factor) {
        constexpr int kOne = D == 2 ? 1 << kDigitBits : 1;  // of the higher digit
        float greatest = 0;
        for (int i = 0; i < G; i++) greatest = std::max(greatest, std::fabs(numbers[i]));
        float inverse = greatest > 0 ? kMaxDigit * kOne / greatest : 0;
        int32_t sum = 0;
        for (int i = 0; i < G; i++) {
            int32_t whole = static_cast<int32_t>(std::rint(numbers[i] * inverse));
            int32_t high = (whole + kOne / 2) >> (D == 2 ? kDigitBits : 0);
            int32_t low = std::max(whole - high * kOne, -kMaxDigit);  // kernels negate digits: never -128
            to[i] = static_cast<int8_t>(high);
            if (D == 2) to[G + i] = static_cast<int8_t>(low);
            sum += D == 2 ? high * kOne + low : high;
        }
        float scale = greatest / (kMaxDigit * kOne) * factor;
        return {scale, scale * sum, sum};
    }
};

// out[row] = bias + summand[row] + weight x[row]. Panels are of 16 outputs: [N / 16][K / G] groups, each of 16 scales,
// 16 minimums if any, and 16 G codes: [G / 4][16][4] of 8 bits, or [G / 8][16][4] of 8 with two codes of 4 bits, the
// lower one of input k, the higher one of k + 4.
template <int Bits, int G, bool HasMinimum, int D>
struct QuantProduct {
    using Sum = GroupSum<Bits>;
    static constexpr int kGroupBytes = kLanes * (2 + 2 * HasMinimum + G * Bits / 8);
    static constexpr int kZero = HasMinimum ? 0 : 1 << (Bits - 1);
    static constexpr int kRowsAtOnce = kParts == 1 ? 8 / D + D / 2 * 2 : kParts == 2 ? 4 - D : 1;

    float* out;
    const float *bias, *summand;  // may be missing
    const uint8_t* panels;
    int64_t num_rows, num_outputs, num_groups;
    Activations<G, D> activations;

    template <int R>
    void run(int64_t row, int64_t panel) const {
        const int8_t* digits[R];
        const GroupFacts* facts[R];
        for (int r = 0; r < R; r++) {
            digits[r] = activations.digits_of(row + r);
            facts[r] = activations.facts_of(row + r);
        }
        Vec sums[R] = {};
        const uint8_t* group = panels + panel * num_groups * kGroupBytes;
        for (int64_t g = 0; g < num_groups; g++, group += kGroupBytes) {
            const uint8_t* codes = group + kLanes * (2 + 2 * HasMinimum);
            for (int part = 0; part < kParts; part++) {
                Sum groups[R][D] = {};
                add_codes<R>(groups, codes + part * kRegisterBytes, digits, g);
                Floats scale = load_halves(group + part * kRegisterLanes * 2);
                for (int r = 0; r < R; r++) {
                    const GroupFacts& of = facts[r][g];
                    Floats whole = as_floats(total(groups[r]) - Sum::kOffset * (kZero ? kZero * of.sum : 0));
                    sums[r].part[part] += whole * (scale * of.scale);
                }
                if (HasMinimum) {
                    Floats minimum = load_halves(group + kLanes * 2 + part * kRegisterLanes * 2);
                    for (int r = 0; r < R; r++) sums[r].part[part] += minimum * facts[r][g].scaled_sum;
                }
            }
        }
        for (int r = 0; r < R; r++) finish(sums[r], row + r, panel * kLanes);
    }

    template <int R>
    static void add_codes(Sum (&groups)[R][D], const uint8_t* codes, const int8_t* const (&digits)[R], int64_t g) {
        for (int k = 0; k < G; k += 4 * 8 / Bits, codes += 64) {
            Bytes both = load_bytes(codes);
            Bytes low = Bits == 4 ? low_nibbles(both) : Sum::prepared(both);
            for (int r = 0; r < R; r++)
                for (int d = 0; d < D; d++) groups[r][d].add(low, digits[r] + (g * D + d) * G + k);
            if (Bits == 8) continue;
            Bytes high = high_nibbles(both);
            for (int r = 0; r < R; r++)
                for (int d = 0; d < D; d++) groups[r][d].add(high, digits[r] + (g * D + d) * G + k + 4);
        }
    }

    static Ints total(const Sum (&digits)[D]) {
        return D == 2 ? (digits[0].total() << kDigitBits) + digits[D - 1].total() : digits[0].total();
    }

    void finish(const Vec& sum, int64_t row, int64_t first) const {
        float lanes[kLanes];
        std::memcpy(lanes, &sum, sizeof lanes);
        int64_t count = std::min<int64_t>(kLanes, num_outputs - first), at = row * num_outputs + first;
        if (bias) for (int64_t i = 0; i < count; i++) lanes[i] += bias[first + i];
        if (summand) for (int64_t i = 0; i < count; i++) lanes[i] += summand[at + i];
        std::memcpy(out + at, lanes, count * sizeof(float));
    }

    // Rows [row, end) of one panel, R rows at once or fewer: as even a split as there is.
    template <int R>
    void run_rows(int64_t row, int64_t end, int64_t panel, int64_t num_tiles) const {
        for (; num_tiles > 0 && (end - row) > (R - 1) * num_tiles; row += R, num_tiles--) run<R>(row, panel);
        if constexpr (R > 1) if (row < end) run_rows<R - 1>(row, end, panel, num_tiles);
    }
};

constexpr int64_t kItemPanels = 4, kItemRows = 96;  // of what one thread takes at a time

template <int Bits, int G, bool HasMinimum, int D>
void multiply(float* out, const float* x, const float* bias, const float* summand, const uint8_t* panels,
              int64_t num_rows, int64_t num_outputs, int64_t num_inputs, float factor) {
    static thread_local std::vector<int8_t> digits;
    static thread_local std::vector<GroupFacts> facts;
    int64_t num_groups = (num_inputs + G - 1) / G;
    if (static_cast<int64_t>(facts.size()) < num_rows * num_groups) facts.resize(num_rows * num_groups);
    if (static_cast<int64_t>(digits.size()) < num_rows * num_groups * D * G) digits.resize(num_rows * num_groups * D * G);
    using Product = QuantProduct<Bits, G, HasMinimum, D>;
    Activations<G, D> activations{num_groups, digits, facts};
    Product product{out, bias, summand, panels, num_rows, num_outputs, num_groups, activations};
    int64_t num_panels = (num_outputs + kLanes - 1) / kLanes;
    int64_t panel_items = (num_panels + kItemPanels - 1) / kItemPanels, row_items = (num_rows + kItemRows - 1) / kItemRows;
#pragma omp parallel num_threads(helios_num_threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < num_rows; row++) activations.quantise(row, x + row * num_inputs, num_inputs, factor);
#pragma omp for schedule(static) collapse(2)
        for (int64_t i = 0; i < row_items; i++)
            for (int64_t j = 0; j < panel_items; j++) {
                int64_t row = i * kItemRows, end = std::min(num_rows, row + kItemRows);
                int64_t until = std::min(num_panels, (j + 1) * kItemPanels);
                int64_t num_tiles = (end - row + Product::kRowsAtOnce - 1) / Product::kRowsAtOnce;
                for (int64_t panel = j * kItemPanels; panel < until; panel++)
                    product.template run_rows<Product::kRowsAtOnce>(row, end, panel, num_tiles);
            }
    }
}

}  // namespace

#define HELIOS_QUANT_PRODUCT(NAME, BITS, G, HAS_MINIMUM)                                                         \
    extern "C" void multiply_##NAME(float* out, const float* x, const float* bias, const float* summand,         \
                                    const uint8_t* panels, int64_t num_rows, int64_t num_outputs,                \
                                    int64_t num_inputs, float factor, int64_t num_digits) {                      \
        (num_digits == 2 ? multiply<BITS, G, HAS_MINIMUM, 2> : multiply<BITS, G, HAS_MINIMUM, 1>)(               \
            out, x, bias, summand, panels, num_rows, num_outputs, num_inputs, factor);                           \
    }

HELIOS_QUANT_PRODUCT(4_32, 4, 32, false)
HELIOS_QUANT_PRODUCT(4_32_min, 4, 32, true)
HELIOS_QUANT_PRODUCT(8_32, 8, 32, false)
HELIOS_QUANT_PRODUCT(8_16, 8, 16, false)
