// What decoding does between matrix products, in float32 on a CPU; kernels.py and attention.py have the same in
// PyTorch. Plain loops that the compiler turns into vectors of the machine it runs on. The caller, native.py, checks
// pointers and bounds.
//
// N rows, of which the first B have own tokens; H query heads, K key/value heads, G = H / K; D head size.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using i64 = int64_t;

namespace {

// A constant head size lets the compiler keep a whole head in registers; 0 stands for any other.
template <int D_>
struct Head {
    i64 runtime;
    i64 size() const { return D_ ? D_ : runtime; }
};

template <int D_>
float dot(Head<D_> head, const float* a, const float* b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 d = 0; d < head.size(); ++d) sum += a[d] * b[d];
    return sum;
}

template <int D_>
void add_scaled(Head<D_> head, float* to, float factor, const float* from) {
#pragma omp simd
    for (i64 d = 0; d < head.size(); ++d) to[d] += factor * from[d];
}

// Keys and values of one head of one sequence.
struct Span {
    const float *keys, *values;
    i64 length;
};

// softmax(scale * q k) v for the G queries of one row that share keys, over its prefix and its own tokens.
template <int D_>
void attend_head(Head<D_> head, float* out, const float* q, i64 G, const Span spans[2], float scale,
                 std::vector<float>& scores) {
    const i64 D = head.size(), length = spans[0].length + spans[1].length;
    if ((i64)scores.size() < G * length) scores.resize(G * length);
    i64 at = 0;
    for (int s = 0; s < 2; ++s)
        for (i64 l = 0; l < spans[s].length; ++l, ++at)
            for (i64 g = 0; g < G; ++g)
                scores[g * length + at] = scale * dot(head, q + g * D, spans[s].keys + l * D);
    for (i64 g = 0; g < G; ++g) {
        float* p = scores.data() + g * length;
        const float largest = *std::max_element(p, p + length);
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (i64 l = 0; l < length; ++l) total += p[l] = std::exp(p[l] - largest);
        float* o = out + g * D;
        std::fill(o, o + D, 0.f);
        at = 0;
        for (int s = 0; s < 2; ++s)
            for (i64 l = 0; l < spans[s].length; ++l, ++at) add_scaled(head, o, p[at] / total, spans[s].values + l * D);
    }
}

template <int D_>
void attend_rows(Head<D_> head, float* out_NHD, const float* q, const float* k, const float* v, i64 q_stride,
                 i64 k_stride, i64 v_stride, const float* trunk_keys, const float* trunk_values, float* own_keys,
                 float* own_values, i64 trunk_room, i64 own_room, const i64* order_N, const i64* trunk_seats_N,
                 const i64* prefix_lengths_N, const i64* own_lengths_B, i64 N, i64 B, i64 H, i64 K, float scale) {
    const i64 D = head.size(), G = H / K;
#pragma omp parallel
    {
        std::vector<float> scores;
#pragma omp for collapse(2) schedule(dynamic, 8)
        for (i64 h = 0; h < K; ++h)
            for (i64 i = 0; i < N; ++i) {
                const i64 n = order_N[i], prefix = (trunk_seats_N[n] * K + h) * trunk_room * D;
                Span spans[2] = {{trunk_keys + prefix, trunk_values + prefix, prefix_lengths_N[n]}, {nullptr, nullptr, 0}};
                if (n < B) {
                    const i64 own = (n * K + h) * own_room * D, last = own + own_lengths_B[n] * D;
                    std::memcpy(own_keys + last, k + n * k_stride + h * D, D * sizeof(float));
                    std::memcpy(own_values + last, v + n * v_stride + h * D, D * sizeof(float));
                    spans[1] = {own_keys + own, own_values + own, own_lengths_B[n] + 1};
                }
                attend_head(head, out_NHD + (n * H + h * G) * D, q + n * q_stride + h * G * D, G, spans, scale, scores);
            }
    }
}

}  // namespace

extern "C" {

// Stores the new tokens' keys and values behind the rows' own ones (seat n of row n), then attends to both.
// order_N: rows in the order in which they are computed, those of one trunk next to each other.
void attend(float* out_NHD, const float* q, const float* k, const float* v, i64 q_stride, i64 k_stride, i64 v_stride,
            const float* trunk_keys, const float* trunk_values, float* own_keys, float* own_values, i64 trunk_room,
            i64 own_room, const i64* order_N, const i64* trunk_seats_N, const i64* prefix_lengths_N,
            const i64* own_lengths_B, i64 N, i64 B, i64 H, i64 K, i64 D, float scale) {
#define WITH(HEAD)                                                                                                     \
    attend_rows(HEAD, out_NHD, q, k, v, q_stride, k_stride, v_stride, trunk_keys, trunk_values, own_keys, own_values, \
                trunk_room, own_room, order_N, trunk_seats_N, prefix_lengths_N, own_lengths_B, N, B, H, K, scale)
    if (D == 32) WITH(Head<32>{});
    else if (D == 64) WITH(Head<64>{});
    else if (D == 128) WITH(Head<128>{});
    else WITH(Head<0>{D});
#undef WITH
}

// The first `heads` heads of each row, in place: pairs (d, d + D/2) are turned by the row's angle d.
void rotate(float* x, i64 stride, const float* cos_ND, const float* sin_ND, i64 N, i64 heads, i64 D) {
    const i64 half = D / 2;
#pragma omp parallel for schedule(static)
    for (i64 n = 0; n < N; ++n)
        for (i64 h = 0; h < heads; ++h) {
            float *left = x + n * stride + h * D, *right = left + half;
            const float *c = cos_ND + n * half, *s = sin_ND + n * half;
#pragma omp simd
            for (i64 d = 0; d < half; ++d) {
                const float a = left[d], b = right[d];
                left[d] = a * c[d] - b * s[d];
                right[d] = b * c[d] + a * s[d];
            }
        }
}

void rms_norm(float* out, const float* x, const float* weight, i64 N, i64 E, float eps) {
#pragma omp parallel for schedule(static)
    for (i64 n = 0; n < N; ++n) {
        const float* row = x + n * E;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (i64 e = 0; e < E; ++e) squares += row[e] * row[e];
        const float inverse = 1 / std::sqrt(squares / E + eps);
#pragma omp simd
        for (i64 e = 0; e < E; ++e) out[n * E + e] = row[e] * inverse * weight[e];
    }
}

// silu(gate) * up; gate and up are the halves of each row of 2 F. exp(80) is as good as infinity, which fast math lacks.
void swiglu(float* out, const float* gate_up, i64 N, i64 F) {
#pragma omp parallel for schedule(static)
    for (i64 n = 0; n < N; ++n) {
        const float *gate = gate_up + n * 2 * F, *up = gate + F;
#pragma omp simd
        for (i64 f = 0; f < F; ++f) out[n * F + f] = gate[f] / (1 + std::exp(std::min(-gate[f], 80.f))) * up[f];
    }
}
}
