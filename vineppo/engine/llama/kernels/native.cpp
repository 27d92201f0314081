// What decoding does between matrix products, on a CPU; kernels.py and attention.py have the same in PyTorch. Plain
// loops that the compiler turns into vectors of the machine it runs on. The caller, native.py, checks pointers and
// bounds. Numbers are stored as T, float or bf16 as the compiler is told, and computed with as float.
//
// N rows, of which the first B have own tokens; H query heads, K key/value heads, G = H / K; D head size.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

using i64 = int64_t;

// The upper half of a float32.
struct bf16 {
    uint16_t bits;
    bf16() = default;
    bf16(float x) {  // to the nearest, ties to even
        uint32_t whole;
        std::memcpy(&whole, &x, 4);
        bits = (whole + 0x7fff + (whole >> 16 & 1)) >> 16;
    }
    operator float() const {
        const uint32_t whole = (uint32_t)bits << 16;
        float x;
        std::memcpy(&x, &whole, 4);
        return x;
    }
};

using T = NUMBER;

// As PyTorch has it: threads that meet again after less work than this cost more than they save, and much more where
// other processes have their cores.
constexpr i64 GRAIN = 32768;

int team(i64 work, i64 threads) { return work < GRAIN ? 1 : threads; }

// A constant head size lets the compiler keep a whole head in registers; 0 stands for any other.
template <int D_>
struct Head {
    i64 runtime;
    i64 size() const { return D_ ? D_ : runtime; }
};

template <int D_>
float dot(Head<D_> head, const float* a, const T* b) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 d = 0; d < head.size(); ++d) sum += a[d] * (float)b[d];
    return sum;
}

template <int D_>
void add_scaled(Head<D_> head, float* to, float factor, const T* from) {
#pragma omp simd
    for (i64 d = 0; d < head.size(); ++d) to[d] += factor * (float)from[d];
}

// Keys and values of one head of one sequence.
struct Span {
    const T *keys, *values;
    i64 length;
};

// What one thread works on.
struct Scratch {
    std::vector<float> q, scores, sum;
};

// softmax(scale * q k) v for the G queries of one row that share keys, over its prefix and its own tokens.
template <int D_>
void attend_head(Head<D_> head, T* out, const T* q, i64 G, const Span spans[2], float scale, Scratch& scratch) {
    const i64 D = head.size(), length = spans[0].length + spans[1].length;
    if ((i64)scratch.scores.size() < G * length) scratch.scores.resize(G * length);
    scratch.q.assign(q, q + G * D);
    scratch.sum.resize(D);
    float *scores = scratch.scores.data(), *sum = scratch.sum.data();
    i64 at = 0;
    for (int s = 0; s < 2; ++s)
        for (i64 l = 0; l < spans[s].length; ++l, ++at)
            for (i64 g = 0; g < G; ++g)
                scores[g * length + at] = scale * dot(head, scratch.q.data() + g * D, spans[s].keys + l * D);
    for (i64 g = 0; g < G; ++g) {
        float* p = scores + g * length;
        const float largest = *std::max_element(p, p + length);
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (i64 l = 0; l < length; ++l) total += p[l] = std::exp(p[l] - largest);
        std::fill(sum, sum + D, 0.f);
        at = 0;
        for (int s = 0; s < 2; ++s)
            for (i64 l = 0; l < spans[s].length; ++l, ++at) add_scaled(head, sum, p[at] / total, spans[s].values + l * D);
        std::copy(sum, sum + D, out + g * D);
    }
}

// As in attention.py. order_N: rows in the order in which they are computed, those of one trunk next to each other.
struct Batch {
    const i64 *order_N, *trunk_slots_N, *prefix_lengths_N, *own_lengths_B;
    i64 N, B, K, D, trunk_room, own_room;
    float scale;
};

// Stores the new tokens' keys and values behind the rows' own ones (slot n of row n), then attends to both.
template <int D_>
void attend_rows(Head<D_> head, T* out_NHD, const T* q, const T* k, const T* v, i64 q_stride, i64 k_stride,
                 i64 v_stride, i64 H, const T* trunk_keys, const T* trunk_values, T* own_keys, T* own_values,
                 const Batch& batch, i64 threads) {
    const i64 D = head.size(), K = batch.K, G = H / K;
    i64 length = 0;
    for (i64 n = 0; n < batch.N; ++n) length += batch.prefix_lengths_N[n] + (n < batch.B ? batch.own_lengths_B[n] : 0);
#pragma omp parallel num_threads(team(length * H * D, threads))
    {
        Scratch scratch;
#pragma omp for collapse(2) schedule(dynamic, 8)
        for (i64 h = 0; h < K; ++h)
            for (i64 i = 0; i < batch.N; ++i) {
                const i64 n = batch.order_N[i], prefix = (batch.trunk_slots_N[n] * K + h) * batch.trunk_room * D;
                Span spans[2] = {{trunk_keys + prefix, trunk_values + prefix, batch.prefix_lengths_N[n]},
                                 {nullptr, nullptr, 0}};
                if (n < batch.B) {
                    const i64 own = (n * K + h) * batch.own_room * D, last = own + batch.own_lengths_B[n] * D;
                    std::memcpy(own_keys + last, k + n * k_stride + h * D, D * sizeof(T));
                    std::memcpy(own_values + last, v + n * v_stride + h * D, D * sizeof(T));
                    spans[1] = {own_keys + own, own_values + own, batch.own_lengths_B[n] + 1};
                }
                attend_head(head, out_NHD + (n * H + h * G) * D, q + n * q_stride + h * G * D, G, spans, batch.scale,
                            scratch);
            }
    }
}

extern "C" {

void attend(T* out_NHD, const T* q, const T* k, const T* v, i64 q_stride, i64 k_stride, i64 v_stride, i64 H,
            const T* trunk_keys, const T* trunk_values, T* own_keys, T* own_values, const Batch* batch,
            i64 threads) {
    auto with = [&](auto head) {
        attend_rows(head, out_NHD, q, k, v, q_stride, k_stride, v_stride, H, trunk_keys, trunk_values, own_keys,
                    own_values, *batch, threads);
    };
    if (batch->D == 32) with(Head<32>{});
    else if (batch->D == 64) with(Head<64>{});
    else if (batch->D == 128) with(Head<128>{});
    else with(Head<0>{batch->D});
}

// The first `heads` heads of each row, in place: pairs (d, d + D/2) are turned by the row's angle d.
void rotate(T* x, i64 stride, const T* cos_ND, const T* sin_ND, i64 N, i64 heads, i64 D, i64 threads) {
    const i64 half = D / 2;
#pragma omp parallel for num_threads(team(N * heads * D, threads)) schedule(static)
    for (i64 n = 0; n < N; ++n)
        for (i64 h = 0; h < heads; ++h) {
            T *left = x + n * stride + h * D, *right = left + half;
            const T *c = cos_ND + n * half, *s = sin_ND + n * half;
#pragma omp simd
            for (i64 d = 0; d < half; ++d) {
                const float a = left[d], b = right[d];
                left[d] = a * (float)c[d] - b * (float)s[d];
                right[d] = b * (float)c[d] + a * (float)s[d];
            }
        }
}

// Rounded to T before the weight, as in transformers.
void rms_norm(T* out, const T* x, const T* weight, i64 N, i64 E, float eps, i64 threads) {
#pragma omp parallel for num_threads(team(N * E, threads)) schedule(static)
    for (i64 n = 0; n < N; ++n) {
        const T* row = x + n * E;
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (i64 e = 0; e < E; ++e) squares += (float)row[e] * (float)row[e];
        const float inverse = 1 / std::sqrt(squares / E + eps);
#pragma omp simd
        for (i64 e = 0; e < E; ++e) out[n * E + e] = (float)T((float)row[e] * inverse) * (float)weight[e];
    }
}

// silu(gate) * up; gate and up are the halves of each row of 2 F. exp(80) is as good as infinity, which fast math lacks.
void swiglu(T* out, const T* gate_up, i64 N, i64 F, i64 threads) {
#pragma omp parallel for num_threads(team(N * F, threads)) schedule(static)
    for (i64 n = 0; n < N; ++n) {
        const T *gate = gate_up + n * 2 * F, *up = gate + F;
#pragma omp simd
        for (i64 f = 0; f < F; ++f) {
            const float g = gate[f];
            out[n * F + f] = g / (1 + std::exp(std::min(-g, 80.f))) * (float)up[f];
        }
    }
}
}
