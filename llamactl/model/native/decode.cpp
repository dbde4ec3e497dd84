// One step of decoding on a CPU: the next tokens of some sequences, with one read of the weights.
//
// A step does little with each weight, so its time is that of reading memory. PyTorch reads it at less than the full rate, and its
// threads wait for each other after every product. Here one parallel region computes the whole step.
//
// Reproducible: each sum has one order, that of `dot`, whatever the number of threads or sequences. A row of a matrix, and
// a head of attention, belongs to one thread. Products and sums are fp32 in each format of the weights.
//
// llamactl/model/native_build.py compiles this file, llamactl/model/native_step.py fills in the structs.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // NEON, SSE
#endif

constexpr long BLOCK = 64;                    // weights that `dot` takes at once; inputs are padded to a multiple with zeros
constexpr int VECTORS = BLOCK / LANES;        // vectors in a block
constexpr int SUMS = 2;                       // running sums of a dot product: one alone would wait for each addition
constexpr int GROUP = 32;                     // weights per scale in int4
constexpr int TOGETHER = 8;                   // sequences whose inputs are multiplied with a weight while it is in a register
constexpr long NEAR = 8192;                   // inputs, in floats, that the nearest cache holds: of wider ones, fewer are taken
constexpr long CHUNK = 32 * 1024;             // bytes of weights that a thread takes at a time
constexpr long AHEAD = 4096;                  // bytes that weights are fetched before they are needed: a page
constexpr int SPINS = 2000;                   // some 20 microseconds: longer than the work between two phases

// The compiler's own vectors (GCC, Clang): they have the width of the processor's registers and a fixed order of sums.
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Unsigned __attribute__((vector_size(4 * LANES)));

template <class To, class From>
inline To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class T>
inline T load(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

inline Floats broadcast(float value) { return value - Floats{}; }

template <int N>
struct Vector {
    typedef float type __attribute__((vector_size(4 * N)));
};

// The sum of all lanes: halves are added until one is left.
template <int N>
inline float sum_lanes(typename Vector<N>::type value) {
    if constexpr (N == 1) {
        return value[0];
    } else {
        typename Vector<N / 2>::type halves[2];
        std::memcpy(halves, &value, sizeof value);
        return sum_lanes<N / 2>(halves[0] + halves[1]);
    }
}

inline float sum(Floats value) { return sum_lanes<LANES>(value); }

// e^x within 2 units of the last place, for x up to 88; below -87 it is 0. The polynomial is Cephes' expf.
inline Floats exponential(Floats x) {
    const Floats low = broadcast(-87.0f), high = broadcast(88.0f);
    const Ints tiny = x < low;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Floats n = shifted - 12582912.0f;
    const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    Floats p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return tiny ? Floats{} : p * bits<Floats>(power);
}

}  // namespace

// The structs are those of native_step.py, field by field.

enum Format : int64_t { F32, BF16, INT8, INT4 };

struct Matrix {
    const uint8_t* weights;  // rows x columns, row-major; int4: GROUP weights in 16 bytes, the first half in the low nibbles
    const void* scales;      // int8: fp32 per row; int4: bf16 per group
    const float* bias;       // fp32 per row, or null
    int64_t rows, columns;
    int64_t format;
};

struct Layer {
    Matrix query, key, value, output, gate, up, down;
    const float *attention_norm, *query_norm, *key_norm, *mlp_norm;  // gains; those of queries and keys may be null
    uint8_t *keys, *values;                                          // the cache: slots x kv_heads x context x head_dim
};

struct Model {
    Matrix embedding, head;
    const float* norm;
    const Layer* layers;
    int64_t n_layers, dim, n_heads, n_kv_heads, head_dim, ffn_dim, context;
    int64_t cache_format;  // F32 or BF16
    int64_t vocab_size;    // of the tokenizer: later rows of the head are padding
    float epsilon;
};

namespace {

// Weights of one row from some element on.
struct Row {
    const uint8_t* weights;
    const uint8_t* scales;
};

inline Floats widen_bf16(const uint8_t* from) {
    uint16_t halves[LANES];
    std::memcpy(halves, from, sizeof halves);
    Unsigned wide;
    for (int i = 0; i < LANES; i++) wide[i] = halves[i];
    return bits<Floats>(wide << 16);
}

inline Ints widen_int8(const uint8_t* from) {
    Ints wide;
    for (int i = 0; i < LANES; i++) wide[i] = static_cast<int8_t>(from[i]);
    return wide;
}

// The weights that 4 bits stand for, -8 to 7 in two's complement times a scale. Unpacking is what takes the time of int4: where a
// register holds all 16 of them, looking them up is faster than computing them, and gives the same bits.
struct Levels {
#if defined(__AVX512F__)
    Floats all;
    inline explicit Levels(Floats scale) : all(Floats{0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1} * scale) {}
    inline Floats of_low_bits(Ints index) const { return (Floats)_mm512_permutexvar_ps((__m512i)index, (__m512)all); }
#else
    Floats scale;
    inline explicit Levels(Floats value) : scale(value) {}
    inline Floats of_low_bits(Ints index) const { return __builtin_convertvector((index << 28) >> 28, Floats) * scale; }
#endif
};

// How each format is read: a block of weights as vectors of fp32.
template <Format format>
inline void read_block(Row row, Floats (&weights)[VECTORS]) {
    if constexpr (format == F32) {
        for (int v = 0; v < VECTORS; v++) weights[v] = load<Floats>(row.weights + 4 * LANES * v);
    } else if constexpr (format == BF16) {
        for (int v = 0; v < VECTORS; v++) weights[v] = widen_bf16(row.weights + 2 * LANES * v);
    } else if constexpr (format == INT8) {  // the scale is that of the row, applied to the sum
        for (int v = 0; v < VECTORS; v++) weights[v] = __builtin_convertvector(widen_int8(row.weights + LANES * v), Floats);
    } else {
        const Unsigned pair = load<uint32_t>(row.scales) - Unsigned{};  // scales of two groups, little-endian
        const Floats scales[] = {bits<Floats>(pair << 16), bits<Floats>(pair & 0xffff0000u)};
        constexpr int HALF = GROUP / 2 / LANES;  // vectors in half a group
        for (int group = 0; group < 2; group++) {
            const Levels levels(scales[group]);
            for (int v = 0; v < HALF; v++) {
                const Ints two = widen_int8(row.weights + GROUP / 2 * group + LANES * v);
                weights[2 * HALF * group + v] = levels.of_low_bits(two);
                weights[2 * HALF * group + HALF + v] = levels.of_low_bits(two >> 4);
            }
        }
    }
}

constexpr long groups_of(long columns) { return (columns + GROUP - 1) / GROUP; }

template <Format format>
constexpr long bytes_of(long columns) {
    return format == F32 ? 4 * columns : format == BF16 ? 2 * columns : format == INT8 ? columns : groups_of(columns) * (GROUP / 2);
}

template <Format format>
constexpr long scale_bytes_of(long columns) {
    return format == INT4 ? groups_of(columns) * 2 : 0;
}

// Fetch a line of memory into the cache; beyond the end of a matrix this does nothing.
inline void prefetch(const uint8_t* from, long offset) {
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(from) + offset));
}

long padded(long columns) { return (columns + BLOCK - 1) / BLOCK * BLOCK; }

// Dot products of a row with N inputs, each of `padded(columns)` floats, the next one `stride` further.
template <Format format, int N>
inline void dot(Row row, long columns, const float* x, long stride, float* results) {
    Floats sums[N][SUMS] = {};
    auto add_block = [&](Row from, long start) __attribute__((always_inline)) {
        Floats weights[VECTORS];
        read_block<format>(from, weights);
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; v++)
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) sums[n][v % SUMS] += weights[v] * load<Floats>(x + n * stride + start + LANES * v);
    };
    long start = 0;
    for (; start + BLOCK <= columns; start += BLOCK) {
        const uint8_t* weights = row.weights + bytes_of<format>(start);
        for (long line = 0; line < bytes_of<format>(BLOCK); line += 64) prefetch(weights, AHEAD + line);
        add_block({weights, row.scales + scale_bytes_of<format>(start)}, start);
    }
    if (start < columns) {  // the rest of the row, with zeros after it
        uint8_t rest[bytes_of<format>(BLOCK)] = {}, scales[4] = {};
        std::memcpy(rest, row.weights + bytes_of<format>(start), bytes_of<format>(columns - start));
        if (format == INT4) std::memcpy(scales, row.scales + scale_bytes_of<format>(start), scale_bytes_of<format>(columns - start));
        add_block({rest, scales}, start);
    }
    for (int n = 0; n < N; n++) results[n] = sum(sums[n][0] + sums[n][1]);
}

// Products of the rows from `first` up to `end` with the inputs of all sequences: results[(row - first) * batch + sequence]. All
// rows are multiplied with some sequences before others, so that these inputs stay in the nearest cache.
template <Format format>
void multiply_rows(const Matrix& matrix, long first, long end, const float* x, long stride, long batch, float* results) {
    const auto* scales = static_cast<const uint8_t*>(matrix.scales);
    const long columns = matrix.columns;
    auto row_at = [&](long row) {
        return Row{matrix.weights + row * bytes_of<format>(columns), scales + row * scale_bytes_of<format>(columns)};
    };
    long sequence = 0;
    auto multiply = [&]<int N>(std::integral_constant<int, N>) {
        for (; sequence + N <= batch; sequence += N)
            for (long row = first; row < end; row++)
                dot<format, N>(row_at(row), columns, x + sequence * stride, stride, results + (row - first) * batch + sequence);
    };
    if (TOGETHER * stride <= NEAR) multiply(std::integral_constant<int, TOGETHER>());
    multiply(std::integral_constant<int, 4>());
    multiply(std::integral_constant<int, 3>());
    multiply(std::integral_constant<int, 2>());
    multiply(std::integral_constant<int, 1>());
    for (long row = first; row < end; row++)
        for (float* to = results + (row - first) * batch; to < results + (row - first + 1) * batch; to++) {
            if (format == INT8) *to *= load<float>(scales + 4 * row);
            if (matrix.bias) *to += matrix.bias[row];
        }
}

// Choose the code for a format once for many rows.
template <class Work>
inline void with_format(int64_t format, Work work) {
    if (format == F32) work.template operator()<F32>();
    if (format == BF16) work.template operator()<BF16>();
    if (format == INT8) work.template operator()<INT8>();
    if (format == INT4) work.template operator()<INT4>();
}

long row_bytes(const Matrix& matrix) {
    long bytes = 0;
    with_format(matrix.format, [&]<Format format>() { bytes = bytes_of<format>(matrix.columns); });
    return bytes;
}

// The threads of a step. One leads, the others help with what it shares out in chunks. Each thread goes through a part of its
// own, as memory is read fastest in one stream, and then takes what others have not begun: a thread whose core is busy with another
// program holds up no more than the chunk that it is at.
class Team {
  public:
    explicit Team(int threads) : parts_(threads) {}

    // Run `work` for each chunk of a phase and return when all are done. Only the leader, thread 0, calls it.
    template <class Work>
    void share(long chunks, const Work& work) {
        if (parts_.size() == 1 || chunks == 1) {
            for (long chunk = 0; chunk < chunks; chunk++) work(chunk);
            return;
        }
        call_ = [](const void* context, long chunk) { (*static_cast<const Work*>(context))(chunk); };
        context_ = &work;
        done_.store(0, std::memory_order_relaxed);
        const uint64_t count = parts_.size();
        for (uint64_t i = 0; i < count; i++) post(parts_[i], chunks * i / count, chunks * (i + 1) / count);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
        take_chunks(0);
        wait_until_done(chunks);
    }

    // Take part in phases until the leader ends the step.
    void help(int thread) {
        while (true) {
            const int phase = phase_.load(std::memory_order_acquire);
            take_chunks(thread);
            if (ended_.load(std::memory_order_acquire)) break;
            wait_for_change(phase_, phase);
        }
        finish_one();
    }

    // End the step, and return the seconds that the leader slept until others were done: few, where each has a core.
    double end(int threads) {
        done_.store(0, std::memory_order_relaxed);
        ended_.store(true, std::memory_order_release);
        phase_.fetch_add(1, std::memory_order_release);
        phase_.notify_all();
        wait_until_done(threads - 1);
        return slept_;
    }

  private:
    // The next chunk of a part, its end and the number of the phase in one word. Who comes late from an earlier phase takes a chunk
    // of the present one, or none, but never one that another has taken.
    struct alignas(64) Part {
        std::atomic<uint64_t> ticket{0};
    };

    static constexpr int WIDTH = 24;
    static constexpr uint64_t MASK = (uint64_t{1} << WIDTH) - 1;

    void post(Part& part, uint64_t begin, uint64_t end) {
        const uint64_t phase = (phase_.load(std::memory_order_relaxed) + 1) & 0xffff;
        part.ticket.store(phase << (2 * WIDTH) | end << WIDTH | begin, std::memory_order_release);
    }

    void take_chunks(uint64_t first) {
        for (uint64_t i = 0; i < parts_.size(); i++) {
            std::atomic<uint64_t>& next = parts_[(first + i) % parts_.size()].ticket;
            uint64_t ticket = next.load(std::memory_order_acquire);
            while ((ticket & MASK) < (ticket >> WIDTH & MASK)) {
                if (!next.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) continue;
                call_(context_, ticket & MASK);
                finish_one();
                ticket = next.load(std::memory_order_acquire);
            }
        }
    }

    // Spin for a moment, which is usually enough, then sleep and return for how long: on a busy machine a spinning thread keeps others from their work.
    static double wait_for_change(const std::atomic<int>& value, int old) {
        for (int spin = 0; spin < SPINS; spin++) {
            if (value.load(std::memory_order_acquire) != old) return 0;
            pause();
        }
        const auto start = std::chrono::steady_clock::now();
        value.wait(old, std::memory_order_acquire);
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }

    void finish_one() {
        done_.fetch_add(1, std::memory_order_acq_rel);
        done_.notify_one();
    }

    void wait_until_done(long count) {
        int done;
        while ((done = done_.load(std::memory_order_acquire)) != count) slept_ += wait_for_change(done_, done);
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    std::vector<Part> parts_;
    void (*call_)(const void*, long) = nullptr;
    const void* context_ = nullptr;
    alignas(64) std::atomic<int> phase_{0};
    alignas(64) std::atomic<int> done_{0};
    std::atomic<bool> ended_{false};
    double slept_ = 0;
};

// A line of the cache: a vector that lay in two of them would take two reads.
constexpr int LINE = 16;
struct alignas(64) Line {
    float floats[LINE];
};

// Inputs of products, a row of `padded(width)` floats for each sequence.
struct Inputs {
    Inputs(long batch, long width) : stride(padded(width)), lines(batch * stride / LINE) {}
    float* operator[](long sequence) { return lines.data()->floats + sequence * stride; }
    long stride;
    std::vector<Line> lines;
};

void rms_norm(const float* x, const float* gains, long width, float epsilon, float* result) {
    Floats squares = {};
    float rest = 0;
    long i = 0;
    for (; i + LANES <= width; i += LANES) squares += load<Floats>(x + i) * load<Floats>(x + i);
    for (; i < width; i++) rest += x[i] * x[i];
    const float scale = 1 / std::sqrt((sum(squares) + rest) / width + epsilon);
    for (i = 0; i < width; i++) result[i] = x[i] * scale * gains[i];
}

// Rotate each pair of channels (i, i + width / 2) by the angle of the position.
void rotate(float* x, long width, const float* cosines, const float* sines) {
    for (long i = 0; i < width / 2; i++) {
        const float a = x[i], b = x[i + width / 2];
        x[i] = a * cosines[i] - b * sines[i];
        x[i + width / 2] = b * cosines[i] + a * sines[i];
    }
}

void write_bf16(uint8_t* to, const float* from, long count) {
    for (long i = 0; i < count; i++) {
        uint32_t wide = bits<uint32_t>(from[i]);
        wide += 0x7fff + (wide >> 16 & 1);  // to nearest, ties to even
        const uint16_t half = std::isnan(from[i]) ? 0x7fc0 : wide >> 16;
        std::memcpy(to + 2 * i, &half, 2);
    }
}

void silu_times(float* gate, const float* up, long count) {
    for (long i = 0; i < count; i += LANES) {
        const Floats x = load<Floats>(gate + i);
        store(gate + i, x / (1.0f + exponential(-x)) * load<Floats>(up + i));
    }
}

float largest_of(const float* x, long count) {
    Floats largest = broadcast(-INFINITY);
    long i = 0;
    for (; i + LANES <= count; i += LANES) largest = load<Floats>(x + i) > largest ? load<Floats>(x + i) : largest;
    float most = -INFINITY;
    for (int lane = 0; lane < LANES; lane++) most = std::max(most, float{largest[lane]});
    for (; i < count; i++) most = std::max(most, x[i]);
    return most;
}

float log_sum_exp(const float* x, long count) {
    const float most = largest_of(x, count);
    Floats total = {};
    float rest = 0;
    long i = 0;
    for (; i + LANES <= count; i += LANES) total += exponential(load<Floats>(x + i) - most);
    for (; i < count; i++) rest += std::exp(x[i] - most);
    return most + std::log(sum(total) + rest);
}

// The row has room up to `padded(count)`: what is after `count` becomes zero.
void softmax(float* x, long count) {
    const long end = padded(count);
    std::fill(x + count, x + end, -INFINITY);
    const float most = largest_of(x, count);
    Floats total = {};
    for (long i = 0; i < end; i += LANES) {
        const Floats power = exponential(load<Floats>(x + i) - most);
        store(x + i, power);
        total += power;
    }
    const float scale = 1 / sum(total);
    for (long i = 0; i < end; i++) x[i] *= scale;
}

// Where each sequence of a step stands: its slot in the cache, the position of its token, and the rotary angles there
// (head_dim / 2 cosines and sines).
struct Places {
    long batch;
    const int64_t *slots, *positions;
    const float *cosines, *sines;
};

class Step {
  public:
    Step(const Model& model, const Places& places, Team& team)
        : m(model), batch(places.batch), at(places), team(team),
          residual(batch, m.dim), normed(batch, m.dim), heads(batch, m.n_heads * m.head_dim), hidden(batch, m.ffn_dim),
          queries(batch * m.n_heads, m.head_dim),
          scores(batch * m.n_heads, *std::max_element(at.positions, at.positions + batch) + 1) {}

    void run(const int64_t* tokens, float* logits, float* totals) {
        for (long n = 0; n < batch; n++) read_embedding(tokens[n], residual[n]);
        for (long i = 0; i < m.n_layers; i++) {
            attention(m.layers[i]);
            mlp(m.layers[i]);
        }
        normalise(m.norm);
        const long rows = m.head.rows;
        multiply(m.head, normed, m.vocab_size, [&](long row, const float* results) {
            for (long n = 0; n < batch; n++) logits[n * rows + row] = results[n];
        });
        team.share(batch, [&](long n) {
            std::fill(logits + n * rows + m.vocab_size, logits + (n + 1) * rows, -INFINITY);
            totals[n] = log_sum_exp(logits + n * rows, m.vocab_size);
        });
    }

  private:
    void read_embedding(int64_t token, float* to) {
        const uint8_t* row = m.embedding.weights + token * row_bytes(m.embedding);
        if (m.embedding.format == F32) std::memcpy(to, row, 4 * m.dim);
        if (m.embedding.format == BF16)
            for (long i = 0; i < m.dim; i++) to[i] = bits<float>(uint32_t{load<uint16_t>(row + 2 * i)} << 16);
    }

    void normalise(const float* gains) {
        for (long n = 0; n < batch; n++) rms_norm(residual[n], gains, m.dim, m.epsilon, normed[n]);
    }

    // Call `take(row, results)` with the products of the first `rows` rows of a matrix, in any order.
    template <class Take>
    void multiply(const Matrix& matrix, Inputs& x, long rows, const Take& take) {
        with_format(matrix.format, [&]<Format format>() {
            const long at_once = rows_at_once(matrix);
            team.share((rows + at_once - 1) / at_once, [&](long chunk) {
                const long start = chunk * at_once, end = std::min(rows, start + at_once);
                std::vector<float> results(batch * at_once);
                multiply_rows<format>(matrix, start, end, x[0], x.stride, batch, results.data());
                for (long row = start; row < end; row++) take(row, results.data() + (row - start) * batch);
            });
        });
    }

    static long rows_at_once(const Matrix& matrix) { return std::max(1L, CHUNK / row_bytes(matrix)); }

    void attention(const Layer& layer) {
        normalise(layer.attention_norm);
        project_heads(layer);
        team.share(batch * m.n_heads, [&](long index) {
            with_format(m.cache_format, [&]<Format format>() { attend<format>(layer, index / m.n_heads, index % m.n_heads); });
        });
        add_to_residual(layer.output, heads);
    }

    // Queries, keys and values are one phase: a chunk is a head of any of them. Keys and values go straight into the cache.
    void project_heads(const Layer& layer) {
        const long width = m.head_dim;
        team.share(m.n_heads + 2 * m.n_kv_heads, [&](long head) {
            const bool is_query = head < m.n_heads, is_key = !is_query && head < m.n_heads + m.n_kv_heads;
            const Matrix& matrix = is_query ? layer.query : is_key ? layer.key : layer.value;
            const float* gains = is_query ? layer.query_norm : is_key ? layer.key_norm : nullptr;
            const long own = is_query ? head : (head - m.n_heads) % m.n_kv_heads;
            std::vector<float> products(batch * width), one(width);
            float* x = one.data();
            with_format(matrix.format, [&]<Format format>() {
                const long start = own * width;
                multiply_rows<format>(matrix, start, start + width, normed[0], normed.stride, batch, products.data());
            });
            for (long n = 0; n < batch; n++) {
                for (long i = 0; i < width; i++) x[i] = products[i * batch + n];
                if (gains) rms_norm(x, gains, width, m.epsilon, x);
                const long angle = n * width / 2;
                if (is_query || is_key) rotate(x, width, at.cosines + angle, at.sines + angle);
                if (is_query)
                    std::memcpy(queries[n * m.n_heads + own], x, 4 * width);
                else
                    write_cache(is_key ? layer.keys : layer.values, n, own, x);
            }
        });
    }

    uint8_t* cached(uint8_t* buffer, long sequence, long head) const {
        const long element = m.cache_format == F32 ? 4 : 2;
        return buffer + (at.slots[sequence] * m.n_kv_heads + head) * m.context * m.head_dim * element;
    }

    void write_cache(uint8_t* buffer, long sequence, long head, const float* x) {
        uint8_t* start = cached(buffer, sequence, head);
        const long position = at.positions[sequence];
        if (m.cache_format == F32)
            std::memcpy(start + position * m.head_dim * 4, x, 4 * m.head_dim);
        else
            write_bf16(start + position * m.head_dim * 2, x, m.head_dim);
    }

    // Attention of one head of one sequence over all its positions.
    template <Format format>
    void attend(const Layer& layer, long sequence, long head) {
        const long width = m.head_dim, count = at.positions[sequence] + 1, row = bytes_of<format>(width);
        const long shared = head / (m.n_heads / m.n_kv_heads);
        const uint8_t *keys = cached(layer.keys, sequence, shared), *values = cached(layer.values, sequence, shared);
        float* query = queries[sequence * m.n_heads + head];
        float* weights = scores[sequence * m.n_heads + head];
        const float scale = 1 / std::sqrt(static_cast<float>(width));
        for (long i = 0; i < width; i++) query[i] *= scale;
        for (long i = 0; i < count; i++) dot<format, 1>({keys + i * row, nullptr}, width, query, 0, weights + i);
        softmax(weights, count);
        float* result = heads[sequence] + head * width;
        std::memset(result, 0, 4 * width);
        for (long start = 0; start < width; start += BLOCK) add_values<format>(values + bytes_of<format>(start), weights, count, start, result);
    }

    // Add up a block of channels of the values, times their weights.
    template <Format format>
    void add_values(const uint8_t* values, const float* weights, long count, long start, float* result) {
        const long width = m.head_dim, wide = std::min(BLOCK, width - start), row = bytes_of<format>(width);
        Floats sums[VECTORS] = {}, block[VECTORS];
        uint8_t rest[bytes_of<format>(BLOCK)] = {};
        for (long i = 0; i < count; i++) {
            const uint8_t* from = values + i * row;
            if (wide < BLOCK) from = static_cast<const uint8_t*>(std::memcpy(rest, from, bytes_of<format>(wide)));
            read_block<format>({from, nullptr}, block);
            for (int v = 0; v < VECTORS; v++) sums[v] += block[v] * weights[i];
        }
        std::memcpy(result + start, sums, 4 * wide);
    }

    void mlp(const Layer& layer) {
        normalise(layer.mlp_norm);
        // A chunk has the same rows of both matrices, so that their product needs no phase of its own.
        const long at_once = rows_at_once(layer.gate);
        with_format(layer.gate.format, [&]<Format format>() {
            team.share((m.ffn_dim + at_once - 1) / at_once, [&](long chunk) {
                const long start = chunk * at_once, end = std::min<long>(m.ffn_dim, start + at_once);
                std::vector<float> gate(padded(batch * at_once)), up(padded(batch * at_once));
                multiply_rows<format>(layer.gate, start, end, normed[0], normed.stride, batch, gate.data());
                multiply_rows<format>(layer.up, start, end, normed[0], normed.stride, batch, up.data());
                silu_times(gate.data(), up.data(), batch * (end - start));
                for (long row = start; row < end; row++)
                    for (long n = 0; n < batch; n++) hidden[n][row] = gate[(row - start) * batch + n];
            });
        });
        add_to_residual(layer.down, hidden);
    }

    void add_to_residual(const Matrix& matrix, Inputs& x) {
        multiply(matrix, x, matrix.rows, [&](long row, const float* results) {
            for (long n = 0; n < batch; n++) residual[n][row] += results[n];
        });
    }

    const Model& m;
    const long batch;
    const Places& at;
    Team& team;
    Inputs residual, normed, heads, hidden, queries, scores;
};

}  // namespace

// Compute the logits (batch x rows of the head) of the token after each of `tokens`, and the logarithms of the sums of their
// exponentials (batch). The keys and values of `tokens` are stored in their slots of the cache, at their positions, whose rotary
// angles have these cosines and sines (batch x head_dim / 2). Return the seconds that the leader slept until other threads were done.
extern "C" double decode_step(const Model* model, int64_t batch, const int64_t* tokens, const int64_t* slots,
                              const int64_t* positions, const float* cosines, const float* sines, float* logits, float* totals,
                              int32_t threads) {
    const Places places = {batch, slots, positions, cosines, sines};
    Team team(threads);
    Step step(*model, places, team);
    double slept = 0;
    auto take_part = [&](int thread, int present) {
        if (thread == 0) {
            step.run(tokens, logits, totals);
            slept = team.end(present);
        } else {
            team.help(thread);
        }
    };
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    take_part(omp_get_thread_num(), omp_get_num_threads());
#else  // as with Apple's compiler: threads of its own, some 20 microseconds each
    std::vector<std::thread> others;
    try {
        for (int thread = 1; thread < threads; thread++) others.emplace_back(take_part, thread, threads);
    } catch (const std::system_error&) {  // the system has no more: those that there are do the work
    }
    take_part(0, 1 + static_cast<int>(others.size()));
    for (std::thread& other : others) other.join();
#endif
    return slept;
}
