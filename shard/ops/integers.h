// Whole numbers of 8 bits, a register of them at a time: the one place with instructions of single architectures.
// A register holds kRegisterLanes lanes of four neighbouring codes; `add` multiplies each four by four activations.

#pragma once

#include "vectors.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

typedef uint8_t Bytes __attribute__((vector_size(kRegisterBytes)));
typedef int8_t SignedBytes __attribute__((vector_size(kRegisterBytes)));
typedef int16_t Shorts __attribute__((vector_size(kRegisterBytes)));
typedef int32_t Ints __attribute__((vector_size(kRegisterBytes)));

inline Bytes load_bytes(const uint8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return bytes;
}
inline Bytes low_nibbles(Bytes both) { return both & 15; }
inline Bytes high_nibbles(Bytes both) {
    return reinterpret_cast<Bytes>(reinterpret_cast<Words>(both) >> 4) & 15;  // bytes have no shift of their own
}
inline Floats as_floats(Ints whole) { return __builtin_convertvector(whole, Floats); }

// Four activations, the same in every lane.
inline Ints load_four(const int8_t* from) {
    int32_t four;
    std::memcpy(&four, from, sizeof four);
    return four - Ints{};
}

// kRegisterLanes numbers in float16.
inline Floats load_halves(const uint8_t* from) {
#if defined(__AVX512F__)
    return reinterpret_cast<Floats>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__) && defined(__AVX__)
    return reinterpret_cast<Floats>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    float16 halves[kRegisterLanes];
    std::memcpy(halves, from, sizeof halves);
    Words words;
    for (int i = 0; i < kRegisterLanes; i++) words[i] = halves[i].bits;
    return widen_low(words, halves);
#endif
}

// The sum over a group of codes times activations, in each lane. `prepared` makes of codes of 8 bits what `add` takes.
// kOffset 1: `total` is of codes as they are stored, above zero; 0: of codes less their zero.
#if defined(__AVX512VNNI__)
template <int Bits>
struct GroupSum {
    static constexpr int kOffset = 1;
    Ints sum;

    static Bytes prepared(Bytes codes) { return codes; }
    void add(Bytes codes, const int8_t* four) {
        sum = reinterpret_cast<Ints>(_mm512_dpbusd_epi32(
            reinterpret_cast<__m512i>(sum), reinterpret_cast<__m512i>(codes), reinterpret_cast<__m512i>(load_four(four))));
    }
    Ints total() const { return sum; }
};
#elif defined(__AVXVNNI__)
template <int Bits>
struct GroupSum {
    static constexpr int kOffset = 1;
    Ints sum;

    static Bytes prepared(Bytes codes) { return codes; }
    void add(Bytes codes, const int8_t* four) {
        sum = reinterpret_cast<Ints>(_mm256_dpbusd_avx_epi32(
            reinterpret_cast<__m256i>(sum), reinterpret_cast<__m256i>(codes), reinterpret_cast<__m256i>(load_four(four))));
    }
    Ints total() const { return sum; }
};
#elif defined(__SSSE3__)
#if defined(__AVX512BW__)
inline Shorts multiply_pairs(Bytes a, Bytes b) {
    return reinterpret_cast<Shorts>(_mm512_maddubs_epi16(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
inline Ints add_pairs(Shorts a) {
    return reinterpret_cast<Ints>(_mm512_madd_epi16(reinterpret_cast<__m512i>(a), _mm512_set1_epi16(1)));
}
inline Bytes with_sign_of(Bytes a, Bytes b) {
    Bytes sign = reinterpret_cast<Bytes>(reinterpret_cast<SignedBytes>(b) < 0);
    return (a ^ sign) - sign;
}
#elif defined(__AVX2__)
inline Shorts multiply_pairs(Bytes a, Bytes b) {
    return reinterpret_cast<Shorts>(_mm256_maddubs_epi16(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
inline Ints add_pairs(Shorts a) {
    return reinterpret_cast<Ints>(_mm256_madd_epi16(reinterpret_cast<__m256i>(a), _mm256_set1_epi16(1)));
}
inline Bytes with_sign_of(Bytes a, Bytes b) {
    return reinterpret_cast<Bytes>(_mm256_sign_epi8(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
#else
inline Shorts multiply_pairs(Bytes a, Bytes b) {
    return reinterpret_cast<Shorts>(_mm_maddubs_epi16(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
inline Ints add_pairs(Shorts a) {
    return reinterpret_cast<Ints>(_mm_madd_epi16(reinterpret_cast<__m128i>(a), _mm_set1_epi16(1)));
}
inline Bytes with_sign_of(Bytes a, Bytes b) {
    return reinterpret_cast<Bytes>(_mm_sign_epi8(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
#endif

template <int Bits>
struct GroupSum;

// A group's products of codes up to 15 by activations up to 127 fit into 16 bits: two of each of 8 fours.
template <>
struct GroupSum<4> {
    static constexpr int kOffset = 1;
    Shorts sum;

    void add(Bytes codes, const int8_t* four) { sum += multiply_pairs(codes, reinterpret_cast<Bytes>(load_four(four))); }
    static Bytes prepared(Bytes codes) { return codes; }
    Ints total() const { return add_pairs(sum); }
};

// Two products of 8 bits fit into 16 if both are below 128: of the magnitude of codes less 128, by activations with
// the sign of those.
template <>
struct GroupSum<8> {
    static constexpr int kOffset = 0;
    Ints sum;

    static Bytes prepared(Bytes codes) { return codes ^ 128; }
    void add(Bytes codes, const int8_t* four) {
        Bytes activations = reinterpret_cast<Bytes>(load_four(four));
        sum += add_pairs(multiply_pairs(with_sign_of(codes, codes), with_sign_of(activations, codes)));
    }
    Ints total() const { return sum; }
};
#elif defined(__ARM_FEATURE_DOTPROD)
template <int Bits>
struct GroupSum {
    static constexpr int kOffset = Bits == 4;
    Ints sum;

    static Bytes prepared(Bytes codes) { return codes ^ 128; }
    void add(Bytes codes, const int8_t* four) {
        sum = reinterpret_cast<Ints>(vdotq_s32(reinterpret_cast<int32x4_t>(sum), reinterpret_cast<int8x16_t>(codes),
                                               reinterpret_cast<int8x16_t>(load_four(four))));
    }
    Ints total() const { return sum; }
};
#else
template <int Bits>
struct GroupSum {
    static constexpr int kOffset = 1;
    Ints sum;

    static Bytes prepared(Bytes codes) { return codes; }
    void add(Bytes codes, const int8_t* four) {
        for (int i = 0; i < kRegisterLanes; i++)
            for (int j = 0; j < 4; j++) sum[i] += codes[4 * i + j] * four[j];
    }
    Ints total() const { return sum; }
};
#endif

}  // namespace
