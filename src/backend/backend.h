// Backend: the only door to a device. Memory, copies and some thirty-five operations; one file per operation in each device folder.
// Inputs are checked once, in ops/: here they are trusted. One compute stream per backend: operations run in call order.
// Not thread-safe: each rank has its own backend.
//
// Determinism: every operation gives the same bits for the same inputs whatever the number of threads: work is cut into tiles by the
// shapes alone, and each output element is summed in one fixed order.
// Floating tensors are f32 or bf16 ("T" below); arithmetic and accumulation are float. Gradients of parameters are f32 and accumulate
// (+=); gradients of activations are in T and overwrite (=), unless said otherwise.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/adapter_product.h"
#include "core/buffer.h"
#include "core/kernel_options.h"
#include "core/product.h"
#include "core/tensor.h"

namespace tessera {

// What a device does beside its operations runs in lanes: copies to it and copies from it, which a bus carries at the same time, and
// exchanges between ranks. The calls of a lane run in call order; what stands in two lanes is ordered by moments alone.
enum class Lane { compute, to_device, to_host, exchange };
constexpr Lane all_lanes[] = {Lane::compute, Lane::to_device, Lane::to_host, Lane::exchange};
using Moment = uint64_t;  // the end of all that a lane was given until then; 0: has passed

// What a device holds for this process beside what was reserved: context, libraries, their kernels.
struct Overhead {
  size_t bytes = 0;
  std::string unknown;  // not empty: why it is not known; then bytes is 0
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string describe() const = 0;  // "cpu, AVX3_ZEN4, 2 threads"
  virtual int threads() const = 0;

  // --- memory -------------------------------------------------------------------------------------------------------------------
  // Zeroed, page-aligned; pages are committed when first touched. Throws Error naming `what` when the device has no room.
  // It stands in the ledger as `what` while it lives.
  Buffer allocate(size_t bytes, const char* what);
  virtual Buffer reserve(size_t bytes, const char* what) = 0;  // the same, and stands in no ledger
  Buffer allocate_pinned(size_t bytes, const char* what);      // likewise from reserve_pinned(); in host_ledger()
  virtual Ledger& ledger() { return ledger_; }
  // Of host memory that is held for the device's sake. Where the host can read the device's memory it is the same ledger.
  virtual Ledger& host_ledger() { return host_can_read() ? ledger() : host_ledger_; }
  virtual size_t total_memory() const = 0;  // of the device, bytes
  virtual size_t free_memory() const = 0;   // of it, what could be taken now
  // Measured, after a small product and a small kernel.
  virtual Overhead overhead() { return {0, "no device beside the host"}; }
  // Between any two of device and host memory, in the order of the operations. When it returns the host may read `to`, and change
  // `from` unless that is pinned: the device reads pinned memory later, in order.
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void fill_zero(Tensor) = 0;
  // Whether this is memory of a device that the host cannot touch: it is reached by copies and operations alone.
  virtual bool on_device(const void*) const { return false; }
  virtual bool host_can_read() const { return true; }  // what reserve() gives
  // Host memory that copies move at full speed, and that operations can read, at the speed of the bus; the second makes such memory of what
  // is there, until the Buffer goes.
  virtual Buffer reserve_pinned(size_t bytes, const char* what) { return reserve(bytes, what); }
  virtual Buffer pin(void*, size_t /*bytes*/, const char* /*what*/) { return {}; }

  // --- order: for a device that works while the host goes on; the CPU does everything at once -------------------------------------
  virtual Moment now(Lane) { return 0; }  // of all given to this lane so far
  virtual void wait(Lane, Moment) {}      // what the lane is given from here on starts after it
  // In Lane::to_device when `to` is memory of the device, else in Lane::to_host; both must live on.
  virtual void copy_beside(void* to, const void* from, size_t bytes) { copy(to, from, bytes); }
  virtual void finish() {}                        // the host waits for all lanes
  virtual void* native(Lane) { return nullptr; }  // the lane as the device's libraries name it: cudaStream_t

  // --- products -----------------------------------------------------------------------------------------------------------------
  // See core/product.h. Rank-4 tensors count as (rows, cols). Each element of c is summed term by term and along k in one order, whatever
  // the tiles.
  virtual void gemm(const Product&) = 0;

  // --- adapters of layers that share an input (core/adapter_product.h) --------------------------------------------------------------
  // x (m, k) T and t on multiples of 16 bytes, as an arena gives them; at most AdapterProduct::most of them. `room` is as x, for what
  // dropout leaves of it; it may be empty where nothing is dropped, or where drops_inside(). Here each is formed by itself; a GPU reads or
  // writes the wide matrix once for all.
  virtual bool drops_inside(std::span<const AdapterProduct>) const { return false; }
  virtual void adapters(std::span<const AdapterProduct>, Tensor x, Tensor room);                  // t = scale * drop(x) a^T
  virtual void adapters_backward(std::span<const AdapterProduct>, Tensor x, Tensor room);         // da += t^T drop(x)
  virtual void adapters_input_gradient(Tensor dx, std::span<const AdapterProduct>, Tensor room);  // dx += drop(t a), one after the other

  // --- elementwise --------------------------------------------------------------------------------------------------------------
  virtual void convert(Tensor out, Tensor x) = 0;        // any of f32, bf16, f16 to f32 or bf16, nearest even
  virtual void add(Tensor out, Tensor x, Tensor y) = 0;  // out = x + y; out may be x or y
  virtual void accumulate(Tensor sum, Tensor x) = 0;     // sum (f32) += x (T)
  virtual void add_bias(Tensor y, Tensor bias) = 0;      // each row of y += bias (cols)
  virtual void column_sum(Tensor sum, Tensor x) = 0;     // sum (cols, f32) += rows of x, rows in order
  // out (n) T, out[i] = scale * normal(begin + i) of the stream with this key (core/rng.h)
  virtual void random_normal(Tensor out, uint64_t key, uint64_t begin, float scale) = 0;
  // out = x * mask / (1 - p). Element (t, c) of batch row b is kept when word (t*C + c) of Philox(key, row_keys[b]) >= p * 2^32.
  // x (B, T, C), row_keys (B) i64. The same call on dy is the backward pass. out may be x.
  virtual void dropout(Tensor out, Tensor x, Tensor row_keys, uint64_t key, float p) = 0;

  // --- layers -------------------------------------------------------------------------------------------------------------------
  virtual void embedding(Tensor out, Tensor table, Tensor ids) = 0;             // out (B,T,C) = table (V,C) rows; ids (B,T) i32
  virtual void embedding_backward(Tensor dtable, Tensor dout, Tensor ids) = 0;  // dtable (V,C) f32 += , tokens in order
  virtual void gather_rows(Tensor out, Tensor x, Tensor index) = 0;             // out (n, C) = x rows; index (n) i32
  virtual void scatter_rows(Tensor out, Tensor x, Tensor index) = 0;            // out = 0, then row index[i] of out = x row i
  // out = x * rstd * w with rstd (rows) f32 = 1 / sqrt(mean(x^2) + eps). In bf16 x * rstd is rounded before the weight (as HF Llama).
  virtual void rmsnorm(Tensor out, Tensor rstd, Tensor x, Tensor w, float eps) = 0;
  // dx = gradient; dw (f32) += unless empty. With `dx_accumulates` dx += (the residual stream).
  virtual void rmsnorm_backward(Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor rstd, bool dx_accumulates) = 0;
  // Rotates halves in place: x (B, T, H, D); cos, sin (P, R/2) f32 with R <= D the rotated width; positions (B, T) i32 < P.
  // inverse: by -angle, which is the backward pass.
  virtual void rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool inverse) = 0;
  virtual void swiglu(Tensor out, Tensor gate, Tensor up) = 0;                                      // out = silu(gate) * up
  virtual void swiglu_backward(Tensor dgate, Tensor dup, Tensor dout, Tensor gate, Tensor up) = 0;  // dgate may be gate, dup may be up
  // Causal attention, O(T) memory. q, out (B, Tq, H, D); k, v (B, Tk, K, D), H a multiple of K (head h reads h / (H/K)); query i stands
  // at key position Tk - Tq + i and sees keys from starts[b, i] (B, Tq) i32 (first token of its document) to itself, within the window.
  // lse (B, H, Tq) f32: log of the sum of exp of the scaled scores, for the backward pass.
  virtual void attention(Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor starts, AttentionShape) = 0;
  // REQUIRES: Tq = Tk.
  virtual void attention_backward(Tensor dq, Tensor dk, Tensor dv, Tensor dout, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v,
                                  Tensor starts, AttentionShape) = 0;
  // Row r: loss[r] (f32) = logsumexp(logits[r]) - logits[r][labels[r]]. labels (rows) i32, all >= 0. Unless `gradient` is empty it
  // becomes (softmax - onehot) * scale; it is logits itself, or another tensor of its shape, f32 or bf16.
  virtual void cross_entropy(Tensor loss, Tensor gradient, Tensor logits, Tensor labels, float scale) = 0;

  // --- 4-bit codes (block of consecutive elements, first element in the high nibble) ----------------------------------------------
  // x (n) f32, bf16 or f16 -> codes (ceil(n/2)) u8, absmax (ceil(n/block)) f32, by bitsandbytes' CUDA rule. table: 16 ascending f32 values
  // (host).
  virtual void codebook4_encode(Tensor codes, Tensor absmax, Tensor x, const float* table, int64_t block) = 0;
  // out (n) T = round(table[code] * absmax[i / block]), product in f32.
  virtual void codebook4_decode(Tensor out, Tensor codes, Tensor absmax, const float* table, int64_t block) = 0;
  // absmax (n) f32 = f32(map[q] * scale[i / 256]) + offset[0]: two roundings. map: 256 f32 values (host).
  virtual void nested_decode(Tensor absmax, Tensor q, Tensor scale, Tensor offset, const float* map) = 0;
  // The way back: q[i] = the map's entry nearest to (absmax[i] - offset) / scale[i / 256], scale (ceil(n/256)) the largest magnitude of 256
  // differences, by the rule of codebook4_encode; halfway between two the even entry. map ascends.
  virtual void nested_encode(Tensor q, Tensor scale, Tensor absmax, float offset, const float* map) = 0;

  // --- optimizer (flat f32 arrays) ------------------------------------------------------------------------------------------------
  // torch.optim.AdamW: p *= 1 - lr*wd; m, v; p -= lr/bc1 * m / (sqrt(v)/sqrt(bc2) + eps), with gradient * gradient_scale.
  // Unless empty, copy (bf16) = the new values.
  virtual void adamw(Tensor value, Tensor m, Tensor v, Tensor gradient, Tensor copy, const AdamwStep&) = 0;
  // sums (ceil(n/64)) f64: the sum of squares of each block of 64 elements of x (n) f32.
  virtual void square_sums(Tensor sums, Tensor x) = 0;
  // What of many numbers x (n) f64, all >= 0, the host needs: in any number of parts, whose share is the device's choice.
  // parts (p) f64: the largest of them and of x, infinity when one is not finite, becomes the largest of them.
  virtual void largest(Tensor parts, Tensor x) = 0;
  // parts (p, 2) i64, low and high word: their sum grows by the whole units of 2^exponent in each of x (core/whole_units.h).
  virtual void sum_units(Tensor parts, Tensor x, int exponent) = 0;

 private:
  Ledger ledger_, host_ledger_;
};

// "cpu", "cuda" (the first GPU) or "cuda:N". threads: of the host; 0 means the cores this process may use. Throws Error for a device that
// this build or this machine does not have.
std::unique_ptr<Backend> make_backend(std::string_view device, int threads);

bool built_with_cuda();
int cuda_devices();  // GPUs that can be used: 0 without CUDA in the build or without a driver
// Driver, runtime, libraries, each GPU: name and value, for `tessera env`. Empty without CUDA in the build.
std::vector<std::pair<std::string, std::string>> cuda_facts();

}  // namespace tessera
