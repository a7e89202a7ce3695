// Numbers and vectors that both files of kernels work with. Storage is bfloat16, float16 or float32; arithmetic
// is float32. Vectors are 16 lanes wide by GCC's vector extensions: one AVX-512 register, or as many narrower
// ones as the machine has. Nothing here is of one architecture.

#pragma once

#include <cstdint>
#include <cstring>

extern int helios_num_threads;

namespace {

constexpr int kLanes = 16;
constexpr int kPair = 2 * kLanes;

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
constexpr int kParts = kLanes * 4 / kRegisterBytes, kRegisterLanes = kLanes / kParts;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
typedef float Floats __attribute__((vector_size(kRegisterBytes)));
typedef uint32_t Words __attribute__((vector_size(kRegisterBytes)));

// 16 lanes. GCC keeps a vector that is wider than the registers in memory, but not an array of such that fit.
struct Vec {
    Floats part[kParts];
};

inline Vec operator+(const Vec& a, const Vec& b) {
    Vec sum;
    for (int i = 0; i < kParts; i++) sum.part[i] = a.part[i] + b.part[i];
    return sum;
}
inline void add_product(Vec& sum, const Vec& vector, float factor) {
    for (int i = 0; i < kParts; i++) sum.part[i] += vector.part[i] * factor;
}

struct bfloat16 {
    uint16_t bits;
};
struct float16 {  // as bits: compilers differ in what they make of _Float16 where there are no instructions for it
    uint16_t bits;
};

template <typename To, typename From> To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

inline float widen(float value) { return value; }
inline float widen(bfloat16 value) { return bits_as<float>(static_cast<uint32_t>(value.bits) << 16); }
inline float widen(float16 value) {
    uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
    uint32_t wide = bits_as<uint32_t>(bits_as<float>(magnitude) * 0x1p112f);  // subnormals become normal
    wide |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity, not a number
    return bits_as<float>(wide | static_cast<uint32_t>(value.bits & 0x8000u) << 16);
}

// Round to nearest, ties to even.
template <typename T> T narrow(float value);
template <> inline float narrow<float>(float value) { return value; }
template <> inline bfloat16 narrow<bfloat16>(float value) {
    uint32_t bits = bits_as<uint32_t>(value);
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <> inline float16 narrow<float16>(float value) {
    uint32_t bits = bits_as<uint32_t>(value), sign = bits & 0x80000000u, magnitude = bits ^ sign;
    uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    uint32_t small = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - 0x3f000000u;  // subnormal
    uint32_t large = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    uint32_t half = magnitude < 0x38800000u ? small : magnitude >= 0x477ff000u ? large : normal;
    return {static_cast<uint16_t>(half | sign >> 16)};
}

// 32 neighbouring numbers as their even and their odd ones.
struct Pairs {
    Vec even, odd;
};

inline Pairs load_pairs(const float* from) {
    Words evens;
    for (int i = 0; i < kRegisterLanes; i++) evens[i] = 2 * i;
    Pairs pairs;
    for (int i = 0; i < kParts; i++) {
        Floats low, high;
        std::memcpy(&low, from + 2 * i * kRegisterLanes, sizeof low);
        std::memcpy(&high, from + (2 * i + 1) * kRegisterLanes, sizeof high);
        pairs.even.part[i] = __builtin_shuffle(low, high, evens);
        pairs.odd.part[i] = __builtin_shuffle(low, high, evens + 1);
    }
    return pairs;
}

inline Floats widen_low(Words words, const bfloat16*) { return reinterpret_cast<Floats>(words << 16); }
inline Floats widen_high(Words words, const bfloat16*) { return reinterpret_cast<Floats>(words & 0xffff0000u); }
inline Floats widen_low(Words words, const float16*) {
    Words magnitude = (words & 0x7fffu) << 13;
    Words wide = reinterpret_cast<Words>(reinterpret_cast<Floats>(magnitude) * 0x1p112f);
    return reinterpret_cast<Floats>(wide | ((words & 0x8000u) << 16));  // weights and KV are finite
}
inline Floats widen_high(Words words, const float16* type) { return widen_low(words >> 16, type); }

template <typename T> inline Pairs load_pairs(const T* from) {
    Pairs pairs;
    for (int i = 0; i < kParts; i++) {
        Words words;
        std::memcpy(&words, from + 2 * i * kRegisterLanes, sizeof words);
        pairs.even.part[i] = widen_low(words, from);
        pairs.odd.part[i] = widen_high(words, from);
    }
    return pairs;
}

// Whole numbers of 8 bits; their scale is the caller's.
inline Pairs load_pairs(const int8_t* from) {
    typedef int16_t Shorts __attribute__((vector_size(kRegisterBytes / 2)));
    typedef int32_t Ints __attribute__((vector_size(kRegisterBytes)));
    Pairs pairs;
    for (int i = 0; i < kParts; i++) {
        Shorts two;
        std::memcpy(&two, from + 2 * i * kRegisterLanes, sizeof two);
        Ints words = __builtin_convertvector(two, Ints);
        pairs.even.part[i] = __builtin_convertvector((words << 24) >> 24, Floats);
        pairs.odd.part[i] = __builtin_convertvector(words >> 8, Floats);
    }
    return pairs;
}

}  // namespace
