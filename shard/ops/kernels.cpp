// What torch has no fast CPU operator for, fused: paged attention, rotary embedding with the write into the
// KV cache, RMSNorm, SiLU gating, and choosing tokens from logits. Matrix products are oneDNN's, or products.cpp's.
//
// Plain C functions over raw pointers, so that this builds in seconds without torch's headers.
//
// KV layout, per layer: keys   [block][kv head][group][dim / 2][16 tokens][2]  (a lane is a token: no reduction)
//                       values [block][kv head][group][16 tokens][dim]         (a lane is a dim:   no reduction)
// where a block is block_size / 16 groups of 16 tokens and dim is padded to 32. Both are read 32 numbers at a
// time as neighbouring pairs: two bfloat16 in a word widen by one shift and one mask.

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "vectors.h"

int helios_num_threads = 1;

namespace {

constexpr int64_t kAhead = 4;  // groups between what is read and what is fetched

// exp(x) to float32 precision in a dozen operations (Cephes' polynomial), so that loops over it vectorize
// without calls. x is at most 0 or small: no overflow is looked for.
inline float exponential(float x) {
    x = std::max(x, -87.0f);
    float n = __builtin_rintf(x * 1.44269504f);
    float f = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * f + 1.3981999507e-3f;
    p = p * f + 8.3334519073e-3f;
    p = p * f + 4.1665795894e-2f;
    p = p * f + 1.6666665459e-1f;
    p = p * f + 5.0000001201e-1f;
    int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return (p * f * f + f + 1.0f) * power;
}

// ---------------------------------------------------------------------------------------------- elementwise

template <typename T>
void normalize(T* out, const T* x, const T* weight, int64_t dim, float eps) {
    float sum = 0;
    for (int64_t i = 0; i < dim; i++) sum += widen(x[i]) * widen(x[i]);
    float scale = 1.0f / std::sqrt(sum / static_cast<float>(dim) + eps);
    for (int64_t i = 0; i < dim; i++) out[i] = narrow<T>(widen(x[i]) * scale * widen(weight[i]));
}

template <typename T>
void rms_norm(T* out, const T* x, const T* weight, int64_t rows, int64_t dim, float eps) {
#pragma omp parallel for num_threads(helios_num_threads) if (rows > 8)
    for (int64_t row = 0; row < rows; row++) normalize(out + row * dim, x + row * dim, weight, dim, eps);
}

template <typename T>
void silu_mul(T* out, const T* gate_up, int64_t rows, int64_t dim) {
#pragma omp parallel for num_threads(helios_num_threads) if (rows > 4)
    for (int64_t row = 0; row < rows; row++) {
        const T* gate = gate_up + row * 2 * dim;
        const T* up = gate + dim;
        T* to = out + row * dim;
#pragma omp simd
        for (int64_t i = 0; i < dim; i++) {
            float g = widen(gate[i]);
            to[i] = narrow<T>(g / (1.0f + exponential(std::min(-g, 80.0f))) * widen(up[i]));
        }
    }
}

// ------------------------------------------------------------------------------------------------- KV cache

template <typename S, typename T> S convert(T value) {
    if constexpr (std::is_same_v<S, T>) return value;
    else return narrow<S>(widen(value));
}

// Of 8 bits, a KV head's numbers of one token have a scale; those of a group's tokens stand behind the group.
template <typename S> constexpr bool kIsScaled = std::is_same_v<S, int8_t>;
template <typename S> constexpr int64_t kScales = kIsScaled<S> ? kLanes * sizeof(float) : 0;
constexpr float kGreatestCode = 127;

inline float load_scale(const int8_t* scales, int64_t lane) {
    float scale;
    std::memcpy(&scale, scales + lane * sizeof scale, sizeof scale);
    return scale;
}

// What a head's numbers are multiplied by before they are rounded to 8 bits. Stores the inverse for their lane.
template <typename T>
float store_scale(const T* head, int64_t dim, int8_t* scales, int64_t lane) {
    float most = 0;
    for (int64_t d = 0; d < dim; d++) most = std::max(most, std::abs(widen(head[d])));
    float scale = most / kGreatestCode;
    std::memcpy(scales + lane * sizeof scale, &scale, sizeof scale);
    return most > 0 ? kGreatestCode / most : 0.0f;
}

struct Heads {
    int64_t query, kv, dim;
    int64_t padded() const { return (dim + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes); }  // in the pool
};

// Half-split rotation (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) of the first `rotary` dims.
template <typename T>
void rotate(T* head, const float* cos, const float* sin, int64_t rotary) {
    int64_t half = rotary / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = widen(head[i]), b = widen(head[i + half]);
        head[i] = narrow<T>(a * cos[i] - b * sin[i]);
        head[i + half] = narrow<T>(b * cos[i] + a * sin[i]);
    }
}

template <typename T, typename S>
void rope_write(T* qkv, const float* cos, const float* sin, const T* q_norm, const T* k_norm, float eps,
                const int64_t* positions, const int64_t* slots, S* keys, S* values, int64_t num_tokens,
                Heads heads, int64_t groups_per_block, int64_t rotary) {
    int64_t width = (heads.query + 2 * heads.kv) * heads.dim;
#pragma omp parallel for num_threads(helios_num_threads) if (num_tokens > 4)
    for (int64_t token = 0; token < num_tokens; token++) {
        T* row = qkv + token * width;
        const float* c = cos + positions[token] * (rotary / 2);
        const float* s = sin + positions[token] * (rotary / 2);
        for (int64_t h = 0; h < heads.query + heads.kv; h++) {
            T* head = row + h * heads.dim;
            const T* norm = h < heads.query ? q_norm : k_norm;
            if (norm) normalize(head, head, norm, heads.dim, eps);
            if (rotary) rotate(head, c, s, rotary);
        }
        int64_t group = slots[token] / kLanes, lane = slots[token] % kLanes;
        int64_t block = group / groups_per_block, in_block = group % groups_per_block;
        for (int64_t h = 0; h < heads.kv; h++) {
            const T* k = row + (heads.query + h) * heads.dim;
            const T* v = k + heads.kv * heads.dim;
            int64_t size = heads.padded() * kLanes;
            int64_t base = ((block * heads.kv + h) * groups_per_block + in_block) * (size + kScales<S>);
            S* to = values + base + lane * heads.padded();
            if constexpr (kIsScaled<S>) {
                float k_factor = store_scale(k, heads.dim, keys + base + size, lane);
                float v_factor = store_scale(v, heads.dim, values + base + size, lane);
                for (int64_t d = 0; d < heads.dim; d++)
                    keys[base + (d / 2 * kLanes + lane) * 2 + d % 2] =
                        static_cast<S>(__builtin_rintf(widen(k[d]) * k_factor));
                for (int64_t d = 0; d < heads.dim; d++) to[d] = static_cast<S>(__builtin_rintf(widen(v[d]) * v_factor));
            } else {
                for (int64_t d = 0; d < heads.dim; d++)
                    keys[base + (d / 2 * kLanes + lane) * 2 + d % 2] = convert<S>(k[d]);
                for (int64_t d = 0; d < heads.dim; d++) to[d] = convert<S>(v[d]);
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------ attention

struct Sequence {
    const int32_t* blocks;
    int64_t first_query;  // row of its first query in the batch
    int64_t num_queries;
    int64_t num_keys;  // context length, these queries included
};

struct Tile {  // up to R (query, head) pairs of one sequence that share a KV head
    int32_t sequence, kv_head, first_row, num_rows;
};

struct Scratch {
    std::vector<int64_t> offsets, next;  // of this tile's groups; of the first ones of the tile that follows
    std::vector<float> numbers;
};

// How many things to work on at once, 1, 2 or 4, that each keep so many sums in registers.
constexpr int at_once(int num_sums) {
    int most = kRegisters * 3 / 8 / num_sums;
    return most >= 4 ? 4 : most >= 2 ? 2 : 1;
}

// What costs time, and does not depend on the activations' type.
template <typename S>
struct Pools {
    const S *keys, *values;

    // scores[r][key] = queries[r] . keys[key], G groups of 16 keys at a time: enough sums in flight to hide
    // the latency of each. What comes kAhead groups later is fetched into L2, whose misses are not 16 at most;
    // after the last keys come the first values.
    template <int R, int G>
    void score(float* scores, const float* queries, const std::vector<int64_t>& offsets, int64_t dim, int64_t g) const {
        int64_t num_groups = static_cast<int64_t>(offsets.size());
        for (; g + G <= num_groups; g += G) {
            const S *k[G], *next[G];
            for (int i = 0; i < G; i++) {
                k[i] = keys + offsets[g + i];
                int64_t ahead = g + i + kAhead;
                next[i] = ahead < num_groups ? keys + offsets[ahead] : values + offsets[(ahead - num_groups) % num_groups];
            }
            Vec sums[G][R] = {};
            for (int64_t d = 0; d < dim; d += 2)
                for (int i = 0; i < G; i++) {
                    __builtin_prefetch(next[i] + d * kLanes, 0, 2);
                    Pairs key = load_pairs(k[i] + d * kLanes);
                    for (int r = 0; r < R; r++) {
                        add_product(sums[i][r], key.even, queries[d * R + r]);
                        add_product(sums[i][r], key.odd, queries[(d + 1) * R + r]);
                    }
                }
            for (int i = 0; i < G; i++)
                for (int r = 0; r < R; r++)
                    std::memcpy(scores + (r * num_groups + g + i) * kLanes, &sums[i][r], sizeof(Vec));
        }
        if constexpr (G > 1) score<R, 1>(scores, queries, offsets, dim, g);
    }

    // sums[r] = weights[r] . values, C times 32 dims at a time. Lanes past the last key hold whatever the block
    // held before, and 0 * NaN is NaN, so they are not read. After the last values come the next tile's keys.
    template <int R, int C>
    void weigh(float* sums, const float* weights, const Scratch& scratch, int64_t dim, int64_t num_keys,
               int64_t d) const {
        const std::vector<int64_t>& offsets = scratch.offsets;
        int64_t num_groups = static_cast<int64_t>(offsets.size()), span = num_groups * kLanes;
        for (; d + C * kPair <= dim; d += C * kPair) {
            Vec even[C][R] = {}, odd[C][R] = {};
            for (int64_t g = 0; g < num_groups; g++) {
                const S* v = values + offsets[g] + d;
                int64_t ahead = g + kAhead;
                const S* next = (ahead < num_groups ? values + offsets[ahead]
                                                    : keys + scratch.next[(ahead - num_groups) % scratch.next.size()]) +
                                d;
                int64_t num_lanes = std::min<int64_t>(kLanes, num_keys - g * kLanes);
                for (int64_t t = 0; t < num_lanes; t++)
                    for (int c = 0; c < C; c++) {
                        __builtin_prefetch(next + t * dim + c * kPair, 0, 2);
                        Pairs value = load_pairs(v + t * dim + c * kPair);
                        for (int r = 0; r < R; r++) {
                            add_product(even[c][r], value.even, weights[r * span + g * kLanes + t]);
                            add_product(odd[c][r], value.odd, weights[r * span + g * kLanes + t]);
                        }
                    }
            }
            for (int c = 0; c < C; c++)
                for (int r = 0; r < R; r++) {
                    float* to = sums + r * dim + d + c * kPair;
                    std::memcpy(to, &even[c][r], sizeof(Vec));
                    std::memcpy(to + kLanes, &odd[c][r], sizeof(Vec));
                }
        }
        if constexpr (C > 1) weigh<R, 1>(sums, weights, scratch, dim, num_keys, d);
    }
};

// The type of activations, as the caller numbers them. Attention only reads queries and writes results in it, so
// that its kernels are compiled once for each type of KV.
template <typename Use>
void with_type(int64_t type, Use use) {
    if (type == 0) use(float{});
    else if (type == 1) use(float16{});
    else use(bfloat16{});
}

template <typename S>
struct Attention {
    void* out;
    const void* q;
    int64_t type, q_stride;  // elements between two tokens' queries
    Pools<S> pools;
    Heads heads;
    int64_t groups_per_block, window;
    float scale;

    // Offsets into the pools of groups first .. last of a sequence's context, for one KV head.
    void locate(const Sequence& s, int64_t kv_head, int64_t first, int64_t last, std::vector<int64_t>& offsets) const {
        offsets.clear();
        for (int64_t block = first / groups_per_block; block * groups_per_block < last; block++)
            for (int64_t i = 0; i < groups_per_block; i++) {
                int64_t index = block * groups_per_block + i, run = s.blocks[block] * heads.kv + kv_head;
                if (index >= first && index < last)
                    offsets.push_back((run * groups_per_block + i) * (heads.padded() * kLanes + kScales<S>));
            }
    }

    // Of the next tile only what is fetched ahead.
    void locate_next(const Sequence& s, const Tile& tile, std::vector<int64_t>& offsets) const {
        int64_t until = s.num_keys - s.num_queries + tile.first_row / (heads.query / heads.kv) + 1;
        int64_t first = window > 0 ? std::max<int64_t>(0, until - window) / kLanes : 0;
        locate(s, tile.kv_head, first, std::min(first + kAhead, (until + kLanes - 1) / kLanes), offsets);
    }

    // Rows r of a tile are (query, head) pairs, heads of a query together: query = r / ratio.
    template <int R>
    void run(const Sequence& s, const Tile& tile, Scratch& scratch) const {
        int64_t ratio = heads.query / heads.kv, dim = heads.padded();
        int64_t from[R], until[R], first = INT64_MAX, last = 0;  // keys each row may see; groups any row may
        for (int r = 0; r < R; r++) {
            until[r] = s.num_keys - s.num_queries + (tile.first_row + r) / ratio + 1;
            from[r] = window > 0 ? std::max<int64_t>(0, until[r] - window) : 0;
            first = std::min(first, from[r] / kLanes);
            last = std::max(last, (until[r] + kLanes - 1) / kLanes);
        }
        int64_t span = (last - first) * kLanes;
        locate(s, tile.kv_head, first, last, scratch.offsets);
        scratch.numbers.assign(R * (span + 2 * dim), 0.0f);
        float* scores = scratch.numbers.data();  // [R][span]
        float* queries = scores + R * span;      // [dim][R], scaled
        float* sums = queries + R * dim;         // [R][dim], evens before odds in every 32
        with_type(type, [&](auto zero) {
            for (int r = 0; r < R; r++) {
                auto row = static_cast<const decltype(zero)*>(q) + query_at(s, tile, r, ratio, q_stride);
                for (int64_t d = 0; d < heads.dim; d++) queries[d * R + r] = widen(row[d]) * scale;
            }
        });
        pools.template score<R, at_once(R * kParts)>(scores, queries, scratch.offsets, dim, 0);
        float total[R];
        for (int r = 0; r < R; r++) {
            float* row = scores + r * span;
            int64_t begin = from[r] - first * kLanes, end = until[r] - first * kLanes;
            if constexpr (kIsScaled<S>) apply_scales(row, pools.keys + dim * kLanes, scratch.offsets, begin, end);
            total[r] = softmax(row, span, begin, end);
            if constexpr (kIsScaled<S>) apply_scales(row, pools.values + dim * kLanes, scratch.offsets, begin, end);
        }
        pools.template weigh<R, at_once(2 * R * kParts)>(sums, scores, scratch, dim, s.num_keys - first * kLanes, 0);
        with_type(type, [&](auto zero) {
            using T = decltype(zero);
            for (int r = 0; r < R; r++) {
                T* to = static_cast<T*>(out) + query_at(s, tile, r, ratio, heads.query * heads.dim);
                for (int64_t d = 0; d < heads.dim; d++) {
                    int64_t at = d / 32 * 32 + d % 2 * kLanes + d % 32 / 2;
                    to[d] = narrow<T>(sums[r * dim + at] / total[r]);
                }
            }
        });
    }

    // Offset of a tile's row among queries, and among results, whose tokens are `stride` elements apart.
    int64_t query_at(const Sequence& s, const Tile& tile, int r, int64_t ratio, int64_t stride) const {
        int64_t row = s.first_query + (tile.first_row + r) / ratio;
        return row * stride + (tile.kv_head * ratio + (tile.first_row + r) % ratio) * heads.dim;
    }

    // Multiplies what belongs to keys begin .. end by their scales.
    static void apply_scales(float* x, const int8_t* scales, const std::vector<int64_t>& offsets, int64_t begin,
                             int64_t end) {
        for (int64_t g = begin / kLanes; g * kLanes < end; g++) {
            int64_t first = std::max(begin - g * kLanes, int64_t{0}), last = std::min(end - g * kLanes, int64_t{kLanes});
            for (int64_t t = first; t < last; t++) x[g * kLanes + t] *= load_scale(scales + offsets[g], t);
        }
    }

    // In place: exp(x - max) inside [from, until), 0 outside. Returns the sum.
    static float softmax(float* x, int64_t span, int64_t from, int64_t until) {
        float most = -FLT_MAX, sum = 0;
        for (int64_t i = from; i < until; i++) most = std::max(most, x[i]);
#pragma omp simd reduction(+ : sum)
        for (int64_t i = from; i < until; i++) {
            x[i] = exponential(x[i] - most);
            sum += x[i];
        }
        std::fill(x, x + from, 0.0f);
        std::fill(x + until, x + span, 0.0f);
        return sum;
    }
};

constexpr int kMaxRows = kRegisters < 32 ? 4 : 8;

template <typename S>
void run_tile(const Attention<S>& attention, const Sequence& s, const Tile& tile, Scratch& scratch) {
    switch (tile.num_rows) {
        case 1: return attention.template run<1>(s, tile, scratch);
        case 2: return attention.template run<2>(s, tile, scratch);
        case 3: return attention.template run<3>(s, tile, scratch);
        case 4: return attention.template run<4>(s, tile, scratch);
        case 5: return attention.template run<5>(s, tile, scratch);
        case 6: return attention.template run<6>(s, tile, scratch);
        case 7: return attention.template run<7>(s, tile, scratch);
        default: return attention.template run<kMaxRows>(s, tile, scratch);
    }
}

template <typename S>
void attend(const Attention<S>& attention, const int32_t* tables, int64_t table_stride, const int64_t* query_starts,
            const int64_t* num_keys, int64_t num_sequences, int64_t max_queries) {
    std::vector<Sequence> sequences;
    std::vector<Tile> tiles;
    int64_t ratio = attention.heads.query / attention.heads.kv;
    for (int64_t i = 0; i < num_sequences; i++) {
        Sequence s{tables + i * table_stride, query_starts[i], query_starts[i + 1] - query_starts[i], num_keys[i]};
        sequences.push_back(s);
        if (s.num_queries > max_queries) continue;  // the caller's: matrix products pay there
        int64_t rows = s.num_queries * ratio;
        for (int64_t head = 0; head < attention.heads.kv; head++)
            for (int64_t row = 0; row < rows; row += kMaxRows)
                tiles.push_back({static_cast<int32_t>(i), static_cast<int32_t>(head), static_cast<int32_t>(row),
                                 static_cast<int32_t>(std::min<int64_t>(kMaxRows, rows - row))});
    }
    int chunk = std::clamp(static_cast<int>(tiles.size()) / (8 * helios_num_threads), 1, 4);
#pragma omp parallel num_threads(helios_num_threads) if (tiles.size() > 1)
    {
        Scratch scratch;
#pragma omp for schedule(dynamic, chunk)
        for (size_t i = 0; i < tiles.size(); i++) {
            const Tile& next = tiles[std::min(i + 1, tiles.size() - 1)];
            attention.locate_next(sequences[next.sequence], next, scratch.next);
            run_tile(attention, sequences[tiles[i].sequence], tiles[i], scratch);
        }
    }
}

// --------------------------------------------------------------------------------------------------- logits

// A pure function of (seed, position, token): two rounds of MurmurHash3's finalizer under a 64-bit key.
uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

template <typename T>
void log_sum_exp(const T* logits, float* out, int64_t rows, int64_t vocab) {
#pragma omp parallel for num_threads(helios_num_threads) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const T* from = logits + row * vocab;
        float most = -FLT_MAX, sum = 0;
#pragma omp simd reduction(max : most)
        for (int64_t i = 0; i < vocab; i++) most = std::max(most, widen(from[i]));
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < vocab; i++) sum += exponential(widen(from[i]) - most);
        out[row] = most + std::log(sum);
    }
}

// The lowest index of the greatest value of score(i): the greatest of each stretch first, then inside the best.
template <typename Score>
int64_t argmax(int64_t count, Score score) {
    constexpr int64_t kStretch = 1024;
    float best = -FLT_MAX;
    int64_t start = 0;
    for (int64_t at = 0; at < count; at += kStretch) {
        float most = -FLT_MAX;
#pragma omp simd reduction(max : most)
        for (int64_t i = at; i < std::min(at + kStretch, count); i++) most = std::max(most, score(i));
        if (most > best) best = most, start = at;
    }
    for (int64_t i = start; i < std::min(start + kStretch, count); i++)
        if (score(i) == best) return i;
    return start;
}

// Lane by lane, then over the lanes.
template <typename T>
void top_two(const T* logits, float* out, int64_t rows, int64_t vocab) {
#pragma omp parallel for num_threads(helios_num_threads) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const T* from = logits + row * vocab;
        float first[kLanes], second[kLanes];
        std::fill(first, first + kLanes, -FLT_MAX);
        std::fill(second, second + kLanes, -FLT_MAX);
        int64_t whole = vocab / kLanes * kLanes;
        for (int64_t at = 0; at < whole; at += kLanes)
            for (int i = 0; i < kLanes; i++) {
                float value = widen(from[at + i]);
                second[i] = std::max(second[i], std::min(first[i], value));
                first[i] = std::max(first[i], value);
            }
        float* to = out + 2 * row;
        to[0] = to[1] = -FLT_MAX;
        auto take = [to](float value) {
            to[1] = std::max(to[1], std::min(to[0], value));
            to[0] = std::max(to[0], value);
        };
        for (int64_t at = whole; at < vocab; at++) take(widen(from[at]));
        for (int i = 0; i < kLanes; i++) take(first[i]), take(second[i]);
    }
}

// The greatest of each of many columns bound the greatest of all: what is below `count` of those is passed over.
template <typename T>
void likeliest(const T* logits, int64_t* out, int64_t rows, int64_t vocab, int64_t count) {
    constexpr int64_t kColumns = 64 * kLanes, kStretch = 4 * kLanes;
    using Scored = std::pair<float, int64_t>;
#pragma omp parallel for num_threads(helios_num_threads) if (rows > 1)
    for (int64_t row = 0; row < rows; row++) {
        const T* from = logits + row * vocab;
        float least = -FLT_MAX;
        int64_t whole = vocab / kColumns * kColumns;
        if (whole > 0 && count <= kColumns) {
            std::vector<float> greatest(kColumns, -FLT_MAX);
            for (int64_t at = 0; at < whole; at += kColumns)
                for (int64_t i = 0; i < kColumns; i++) greatest[i] = std::max(greatest[i], widen(from[at + i]));
            std::nth_element(greatest.begin(), greatest.begin() + (count - 1), greatest.end(), std::greater<float>());
            least = greatest[count - 1];
        }
        std::vector<Scored> found;
        for (int64_t at = 0; at < vocab; at += kStretch) {
            int64_t end = std::min(at + kStretch, vocab);
            float greatest = -FLT_MAX;
            for (int64_t i = at; i < end; i++) greatest = std::max(greatest, widen(from[i]));
            if (greatest < least) continue;
            for (int64_t i = at; i < end; i++)
                if (widen(from[i]) >= least) found.emplace_back(widen(from[i]), i);
        }
        if (static_cast<int64_t>(found.size()) < count) {  // not numbers: any will do
            found.clear();
            for (int64_t i = 0; i < count; i++) found.emplace_back(0.0f, i);
        }
        std::nth_element(found.begin(), found.begin() + (count - 1), found.end(), std::greater<Scored>());
        for (int64_t i = 0; i < count; i++) out[row * count + i] = found[i].second;
    }
}

template <typename T>
void choose(const T* logits, const float* inverse_temperatures, const uint32_t* keys, int64_t* out, int64_t rows,
            int64_t vocab) {
#pragma omp parallel num_threads(helios_num_threads) if (rows > 1)
    {
        std::vector<float> scores(vocab);
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            const T* from = logits + row * vocab;
            float inverse = inverse_temperatures[row];
            if (inverse == 0.0f) {  // greedy
                out[row] = argmax(vocab, [from](int64_t i) { return widen(from[i]); });
                continue;
            }
            float* to = scores.data();
            uint32_t low = keys[2 * row], high = keys[2 * row + 1];
#pragma omp simd
            for (int64_t i = 0; i < vocab; i++) {
                uint32_t noise = mix(mix(static_cast<uint32_t>(i) + low) + high);
                float uniform = (static_cast<float>(static_cast<int32_t>(noise >> 9)) + 0.5f) * 0x1p-23f;
                to[i] = widen(from[i]) * inverse - std::log(-std::log(uniform));
            }
            out[row] = argmax(vocab, [to](int64_t i) { return to[i]; });
        }
    }
}

// The greatest threshold such that the kept scores (score >= threshold) hold at least `count` tokens and at
// least `mass` of the probability: top-k and top-p without a sort, by bisection over the floats' own order.
int32_t ordered(float value) {
    int32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits >= 0 ? bits : static_cast<int32_t>(0x80000000u - static_cast<uint32_t>(bits));
}

template <typename Enough>
int32_t greatest(int32_t low, int32_t high, Enough enough) {  // enough(low) holds
    while (low < high) {
        int32_t middle = static_cast<int32_t>((static_cast<int64_t>(low) + high + 1) >> 1);
        if (enough(middle)) low = middle; else high = middle - 1;
    }
    return low;
}

void keep_top_rows(float* scores, const int64_t* counts, const float* masses, int64_t rows, int64_t vocab) {
#pragma omp parallel num_threads(helios_num_threads) if (rows > 1)
    {
        std::vector<int32_t> order(vocab);
        std::vector<float> weight(vocab);
#pragma omp for
        for (int64_t row = 0; row < rows; row++) {
            float* x = scores + row * vocab;
            float most = *std::max_element(x, x + vocab);
            for (int64_t i = 0; i < vocab; i++) order[i] = ordered(x[i]);
            int32_t top = ordered(most), cut = ordered(-FLT_MAX);
            if (counts[row] > 0 && counts[row] < vocab)
                cut = greatest(cut, top, [&](int32_t at) {
                    int64_t kept = 0;
                    for (int64_t i = 0; i < vocab; i++) kept += order[i] >= at;
                    return kept >= counts[row];
                });
            if (masses[row] < 1.0f) {
                float total = 0;
#pragma omp simd reduction(+ : total)
                for (int64_t i = 0; i < vocab; i++) {
                    weight[i] = order[i] >= cut ? std::exp(x[i] - most) : 0.0f;
                    total += weight[i];
                }
                cut = greatest(cut, top, [&](int32_t at) {
                    float kept = 0;
                    for (int64_t i = 0; i < vocab; i++) kept += order[i] >= at ? weight[i] : 0.0f;
                    return kept >= masses[row] * total;
                });
            }
            for (int64_t i = 0; i < vocab; i++)
                if (order[i] < cut) x[i] = -FLT_MAX;
        }
    }
}

}  // namespace

#define HELIOS_ACTIVATIONS(NAME, T)                                                                              \
    extern "C" void rms_norm_##NAME(T* out, const T* x, const T* weight, int64_t rows, int64_t dim, float eps) { \
        rms_norm<T>(out, x, weight, rows, dim, eps);                                                             \
    }                                                                                                            \
    extern "C" void silu_mul_##NAME(T* out, const T* gate_up, int64_t rows, int64_t dim) {                       \
        silu_mul<T>(out, gate_up, rows, dim);                                                                    \
    }                                                                                                            \
    extern "C" void log_sum_exp_##NAME(const T* logits, float* out, int64_t rows, int64_t vocab) {               \
        log_sum_exp<T>(logits, out, rows, vocab);                                                                \
    }                                                                                                            \
    extern "C" void top_two_##NAME(const T* logits, float* out, int64_t rows, int64_t vocab) {                   \
        top_two<T>(logits, out, rows, vocab);                                                                    \
    }                                                                                                            \
    extern "C" void likeliest_##NAME(const T* logits, int64_t* out, int64_t rows, int64_t vocab,                 \
                                     int64_t count) {                                                            \
        likeliest<T>(logits, out, rows, vocab, count);                                                           \
    }                                                                                                            \
    extern "C" void choose_##NAME(const T* logits, const float* inverse_temperatures, const uint32_t* keys,      \
                                  int64_t* out, int64_t rows, int64_t vocab) {                                   \
        choose<T>(logits, inverse_temperatures, keys, out, rows, vocab);                                         \
    }

#define HELIOS_WRITE(NAME, T, S)                                                                                 \
    extern "C" void rope_write_##NAME(T* qkv, const float* cos, const float* sin, const T* q_norm,               \
                                      const T* k_norm, float eps, const int64_t* positions,                      \
                                      const int64_t* slots, S* keys, S* values, int64_t num_tokens,              \
                                      int64_t query_heads, int64_t kv_heads, int64_t dim,                        \
                                      int64_t groups_per_block, int64_t rotary) {                                \
        rope_write<T, S>(qkv, cos, sin, q_norm, k_norm, eps, positions, slots, keys, values, num_tokens,         \
                         {query_heads, kv_heads, dim}, groups_per_block, rotary);                                \
    }
#define HELIOS_ATTEND(NAME, S)                                                                                   \
    extern "C" void attend_##NAME(void* out, const void* q, int64_t type, int64_t q_stride, const S* keys,       \
                                  const S* values, const int32_t* tables, int64_t table_stride,                  \
                                  const int64_t* query_starts, const int64_t* num_keys, int64_t num_sequences,   \
                                  int64_t max_queries, int64_t query_heads, int64_t kv_heads, int64_t dim,       \
                                  int64_t groups_per_block, int64_t window, float scale) {                       \
        attend<S>({out, q, type, q_stride, {keys, values}, {query_heads, kv_heads, dim}, groups_per_block,       \
                   window, scale},                                                                               \
                  tables, table_stride, query_starts, num_keys, num_sequences, max_queries);                     \
    }
#define HELIOS_KV(NAME, S)                    \
    HELIOS_WRITE(f32_##NAME, float, S)        \
    HELIOS_WRITE(f16_##NAME, float16, S)      \
    HELIOS_WRITE(bf16_##NAME, bfloat16, S)    \
    HELIOS_ATTEND(NAME, S)

HELIOS_ACTIVATIONS(f32, float)
HELIOS_ACTIVATIONS(f16, float16)
HELIOS_ACTIVATIONS(bf16, bfloat16)
HELIOS_KV(f32, float)
HELIOS_KV(f16, float16)
HELIOS_KV(bf16, bfloat16)
HELIOS_KV(i8, int8_t)

extern "C" void keep_top(float* scores, const int64_t* counts, const float* masses, int64_t rows, int64_t vocab) {
    keep_top_rows(scores, counts, masses, rows, vocab);
}
extern "C" void set_num_threads(int count) { helios_num_threads = count; }
