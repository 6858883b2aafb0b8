#include "backend/profiling_backend.h"

#include <algorithm>
#include <vector>

namespace tessera {
namespace {

double bytes_of(std::initializer_list<Tensor> tensors) {
  double sum = 0;
  for (const Tensor& t : tensors)
    if (!t.empty()) sum += double(t.bytes());
  return sum;
}

// An operation that moves `bytes`; its sizes and dtype are those of `x`.
Operation moves(const char* name, Tensor x, double bytes) {
  Operation o;
  o.name = name;
  o.dtype = x.dtype;
  o.rank = x.shape.rank;
  std::copy_n(x.shape.dim.begin(), x.shape.rank, o.sizes.begin());
  o.bytes = bytes;
  return o;
}

double bytes_of(const Factor& b) {
  if (!b.is_codes()) return bytes_of({b.dense});
  return bytes_of({b.codes.codes, b.codes.absmax, b.codes.nested_absmax, b.codes.nested_offset});
}

Operation product(const Product& p) {
  static constexpr const char* layouts[2][2] = {{"nn", "nt"}, {"tn", "tt"}};
  const int64_t m = p.c.rows(), n = p.c.cols();
  Operation o;
  o.name = "gemm";
  o.layout = layouts[p.transpose_a][p.transpose_b];
  o.dtype = p.terms ? p.term[0].a.dtype : p.c.dtype;
  o.accumulates = p.accumulate;
  o.sizes[0] = m, o.sizes[1] = n;
  o.rank = 2, o.added_from = 3;
  o.bytes = bytes_of({p.c, p.accumulate ? p.c : Tensor{}, p.bias, p.addend});
  for (int i = 0; i < p.terms; ++i) {
    const Term& t = p.term[i];
    const int64_t k = p.transpose_a ? t.a.rows() : t.a.cols();
    o.sizes[size_t(o.rank++)] = k;
    o.four_bit |= t.b.is_codes();
    o.flops += 2 * double(m) * double(n) * double(k);
    o.bytes += bytes_of({t.a}) + bytes_of(t.b);
  }
  return o;
}

// Of x or its gradient (m, k) and narrow matrices of so many ranks each: that wide one moves once, if all are formed together.
Operation adapter_products(const char* name, std::span<const AdapterProduct> all, Tensor x) {
  Operation o = moves(name, x, bytes_of({x}));
  o.sizes[0] = x.rows(), o.sizes[1] = x.cols();
  o.rank = 2, o.added_from = 3;
  for (const AdapterProduct& p : all) {
    o.sizes[size_t(o.rank++)] = p.a.rows();
    o.flops += 2 * double(x.size()) * double(p.a.rows());
    o.bytes += bytes_of({p.t, p.a});
    o.drops |= p.drop.p > 0;
  }
  return o;
}

// Pairs of a query and a key it may see, as if no row held several documents: causal, within the window.
double visible_pairs(int64_t queries, int64_t keys, int64_t window) {
  const int64_t first = keys - queries + 1;  // seen by the first query; each next one sees one more, up to the window
  const int64_t growing = window ? std::clamp<int64_t>(window - first + 1, 0, queries) : queries;
  return double(growing) * (double(first) + double(growing - 1) / 2) + double(queries - growing) * double(window);
}

// `products`: of the size pairs x head width; two forward (scores, values), five backward (scores again, and four gradients).
Operation attends(const char* name, Tensor q, Tensor k, AttentionShape s, int products, double bytes) {
  Operation o = moves(name, q, bytes);
  o.sizes[4] = k.shape.dim[1], o.sizes[5] = k.shape.dim[2];
  o.rank = 6;
  const auto [batch, queries, heads, width] = q.shape.dim;
  o.flops = 2.0 * products * visible_pairs(queries, k.shape.dim[1], s.window) * double(batch * heads * width);
  return o;
}

// The rows of the tables that rope reads, at least once each.
double rope_tables(Tensor cos, Tensor positions) { return 8.0 * double(cos.cols() * std::min(cos.rows(), positions.cols())); }

}  // namespace

template <class Call>
void ProfilingBackend::timed(const Operation& o, Call&& call) {
  const int64_t begin = Profile::now();
  call();
  profile_.record(o, begin, Profile::now());
}

void ProfilingBackend::copy(void* to, const void* from, size_t bytes) {
  timed(moves("copy", {nullptr, Dtype::u8, {int64_t(bytes)}}, 2 * double(bytes)), [&] { owned_->copy(to, from, bytes); });
}
void ProfilingBackend::fill_zero(Tensor x) {
  timed(moves("fill_zero", x, bytes_of({x})), [&] { owned_->fill_zero(x); });
}

void ProfilingBackend::gemm(const Product& p) {
  timed(product(p), [&] { owned_->gemm(p); });
}

void ProfilingBackend::adapters(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  timed(adapter_products("adapters", all, x), [&] { owned_->adapters(all, x, room); });
}
void ProfilingBackend::adapters_backward(std::span<const AdapterProduct> all, Tensor x, Tensor room) {
  Operation o = adapter_products("adapters_backward", all, x);
  o.accumulates = true;
  for (const AdapterProduct& p : all) o.bytes += bytes_of({p.da, p.da});
  timed(o, [&] { owned_->adapters_backward(all, x, room); });
}
void ProfilingBackend::adapters_input_gradient(Tensor dx, std::span<const AdapterProduct> all, Tensor room) {
  Operation o = adapter_products("adapters_input_gradient", all, dx);
  o.accumulates = true, o.bytes += bytes_of({dx});
  timed(o, [&] { owned_->adapters_input_gradient(dx, all, room); });
}

void ProfilingBackend::convert(Tensor out, Tensor x) {
  timed(moves("convert", x, bytes_of({out, x})), [&] { owned_->convert(out, x); });
}
void ProfilingBackend::add(Tensor out, Tensor x, Tensor y) {
  timed(moves("add", out, bytes_of({out, x, y})), [&] { owned_->add(out, x, y); });
}
void ProfilingBackend::accumulate(Tensor sum, Tensor x) {
  timed(moves("accumulate", x, bytes_of({sum, sum, x})), [&] { owned_->accumulate(sum, x); });
}
void ProfilingBackend::add_bias(Tensor y, Tensor bias) {
  timed(moves("add_bias", y, bytes_of({y, y, bias})), [&] { owned_->add_bias(y, bias); });
}
void ProfilingBackend::column_sum(Tensor sum, Tensor x) {
  timed(moves("column_sum", x, bytes_of({sum, sum, x})), [&] { owned_->column_sum(sum, x); });
}
void ProfilingBackend::random_normal(Tensor out, uint64_t key, uint64_t begin, float scale) {
  timed(moves("random_normal", out, bytes_of({out})), [&] { owned_->random_normal(out, key, begin, scale); });
}
void ProfilingBackend::dropout(Tensor out, Tensor x, Tensor row_keys, uint64_t key, float p) {
  timed(moves("dropout", x, bytes_of({out, x, row_keys})), [&] { owned_->dropout(out, x, row_keys, key, p); });
}

void ProfilingBackend::embedding(Tensor out, Tensor table, Tensor ids) {
  timed(moves("embedding", out, bytes_of({out, out, ids})), [&] { owned_->embedding(out, table, ids); });
}
void ProfilingBackend::embedding_backward(Tensor dtable, Tensor dout, Tensor ids) {
  timed(moves("embedding_backward", dout, bytes_of({dout, ids}) + 8 * double(dout.size())),
        [&] { owned_->embedding_backward(dtable, dout, ids); });
}
void ProfilingBackend::gather_rows(Tensor out, Tensor x, Tensor index) {
  timed(moves("gather_rows", out, bytes_of({out, out, index})), [&] { owned_->gather_rows(out, x, index); });
}
void ProfilingBackend::scatter_rows(Tensor out, Tensor x, Tensor index) {
  timed(moves("scatter_rows", out, bytes_of({out, x, index})), [&] { owned_->scatter_rows(out, x, index); });
}
void ProfilingBackend::rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) {
  timed(moves("rmsnorm", x, bytes_of({out, rstd, x, w})), [&] { owned_->rmsnorm(out, rstd, x, w, eps); });
}
void ProfilingBackend::rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool dx_accumulates) {
  Operation o = moves("rmsnorm_backward", x, bytes_of({dx, dx_accumulates ? dx : Tensor{}, dw, dw, dy, x, w, rstd}));
  o.accumulates = dx_accumulates;
  timed(o, [&] { owned_->rmsnorm_backward(dx, dw, dy, x, w, rstd, dx_accumulates); });
}
void ProfilingBackend::rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) {
  timed(moves("rope", x, bytes_of({x, x, positions}) + rope_tables(cos, positions)),
        [&] { owned_->rope(x, cos, sin, positions, inverse); });
}
void ProfilingBackend::swiglu(Tensor out, Tensor gate, Tensor up) {
  timed(moves("swiglu", out, bytes_of({out, gate, up})), [&] { owned_->swiglu(out, gate, up); });
}
void ProfilingBackend::swiglu_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) {
  timed(moves("swiglu_backward", dout, bytes_of({dgate, dup, dout, gate, up})),
        [&] { owned_->swiglu_backward(dgate, dup, dout, gate, up); });
}
void ProfilingBackend::attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape s) {
  timed(attends("attention", q, k, s, 2, bytes_of({out, lse, q, k, v, starts})), [&] { owned_->attention(out, lse, q, k, v, starts, s); });
}
void ProfilingBackend::attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k,
                                          Tensor v, Tensor starts, AttentionShape s) {
  timed(attends("attention_backward", q, k, s, 5, bytes_of({dq, dk, dv, dout, out, lse, q, k, v, starts})),
        [&] { owned_->attention_backward(dq, dk, dv, dout, out, lse, q, k, v, starts, s); });
}
void ProfilingBackend::cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) {
  timed(moves("cross_entropy", logits, bytes_of({loss, gradient, logits, labels})),
        [&] { owned_->cross_entropy(loss, gradient, logits, labels, scale); });
}

void ProfilingBackend::codebook4_encode(Tensor codes, Tensor absmax, Tensor x, const float* table, int64_t block) {
  timed(moves("codebook4_encode", x, bytes_of({codes, absmax, x})), [&] { owned_->codebook4_encode(codes, absmax, x, table, block); });
}
void ProfilingBackend::codebook4_decode(Tensor out, Tensor codes, Tensor absmax, const float* table, int64_t block) {
  timed(moves("codebook4_decode", out, bytes_of({out, codes, absmax})),
        [&] { owned_->codebook4_decode(out, codes, absmax, table, block); });
}
void ProfilingBackend::nested_decode(Tensor absmax, Tensor q, Tensor scale, Tensor offset, const float* map) {
  timed(moves("nested_decode", absmax, bytes_of({absmax, q, scale, offset})),
        [&] { owned_->nested_decode(absmax, q, scale, offset, map); });
}

void ProfilingBackend::nested_encode(Tensor q, Tensor scale, Tensor absmax, float offset, const float* map) {
  timed(moves("nested_encode", absmax, bytes_of({absmax, q, scale})), [&] { owned_->nested_encode(q, scale, absmax, offset, map); });
}

void ProfilingBackend::adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep& s) {
  timed(moves("adamw", value, bytes_of({value, value, m, m, v, v, gradient, copy})),
        [&] { owned_->adamw(value, m, v, gradient, copy, s); });
}
void ProfilingBackend::square_sums(Tensor sums, Tensor x) {
  timed(moves("square_sums", x, bytes_of({sums, x})), [&] { owned_->square_sums(sums, x); });
}
void ProfilingBackend::largest(Tensor parts, Tensor x) {
  timed(moves("largest", x, bytes_of({x})), [&] { owned_->largest(parts, x); });
}
void ProfilingBackend::sum_units(Tensor parts, Tensor x, int exponent) {
  timed(moves("sum_units", x, bytes_of({x})), [&] { owned_->sum_units(parts, x, exponent); });
}

namespace {

// Seconds of the quickest call in 150 ms, of three at least; the first prepares and does not count.
template <class F>
double quickest(F&& f) {
  f();
  double best = 1e30;
  const int64_t start = Profile::now(), enough = 150'000'000;
  for (int i = 0; i < 3 || Profile::now() - start < enough; ++i) {
    const int64_t begin = Profile::now();
    f();
    best = std::min(best, double(std::max<int64_t>(1, Profile::now() - begin)) * 1e-9);
  }
  return best;
}

// Values between 0.5 and 2 in bf16 and in f32: pages that were never written would share one page of zeros.
Buffer written(Backend& backend, size_t bytes) {
  std::vector<uint16_t> halves(bytes / 2);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = uint16_t(0x3f00 + i * 37 % 255);
  Buffer out = backend.allocate(bytes, "what is measured");
  backend.copy(out.data(), halves.data(), bytes);
  return out;
}

// x W^T from k to 2048 values, for 512 tokens: FLOP/s.
double product_rate(Backend& backend, Dtype dtype, int64_t k) {
  const int64_t m = 512, n = 2048;
  const auto values = [&](int64_t count) { return written(backend, size_t(count) * size_of(dtype)); };
  const Buffer a = values(m * k), b = values(n * k), c = values(m * n);
  Product p;
  p.c = {c.data(), dtype, {m, n}, &backend};
  p.transpose_b = true;
  p.add({a.data(), dtype, {m, k}, &backend}, Tensor{b.data(), dtype, {n, k}, &backend});
  return 2.0 * double(m) * double(n) * double(k) / quickest([&] { backend.gemm(p); });
}

double product_limit(Backend& backend, Dtype dtype) {
  return std::max(product_rate(backend, dtype, 2048), product_rate(backend, dtype, 512));
}

double copy_limit(Backend& backend) {
  const size_t bytes = size_t(64) << 20;
  const Buffer from = written(backend, bytes), to = backend.allocate(bytes, "what is measured");
  return 2.0 * double(bytes) / quickest([&] { backend.copy(to.data(), from.data(), bytes); });
}

}  // namespace

ProfileLimits measure_limits(Backend& backend) {
  return {product_limit(backend, Dtype::f32), product_limit(backend, Dtype::bf16), copy_limit(backend)};
}

ProfileLimits measure_limits(Backend& backend, Dtype dtype) {
  const double products = product_rate(backend, dtype, 2048);
  return {products, products, copy_limit(backend)};
}

std::unique_ptr<Backend> profiled(std::unique_ptr<Backend> backend) {
  Profile* const profile = Profile::current();
  if (!profile) return backend;
  profile->limits = measure_limits(*backend);
  return std::make_unique<ProfilingBackend>(std::move(backend), *profile);
}

}  // namespace tessera
