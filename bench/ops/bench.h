// How an operation is timed and set against its limit. A file of this folder holds the cases of one operation:
//
//   void add_swiglu(Bench& bench) {
//     bench.add("swiglu/bf16/512x1536", copying(2 * bytes, bytes), [=](Memory& m) -> Call {
//       const Tensor out = ..., gate = m.random(...);
//       return [=] { swiglu(out, gate, up); };
//     });
//   }
//
// Tensors are made when the case is run, and given back before the next one.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bench/limits.h"

namespace tessera {

// What one call does, and so which limit stands above it.
struct Work {
  enum class Kind { arithmetic, reading, copying, updating };
  Kind kind = Kind::arithmetic;
  Dtype dtype = Dtype::f32;  // arithmetic: the peak of this dtype
  double flops = 0;
  double bytes = 0;        // read and written
  size_t working_set = 0;  // bytes gone over again and again, which says in which cache the limit is read
};
Work arithmetic(Dtype, double flops);
Work reading(double bytes);                            // limit: memory or cache that is only read
Work copying(double read, double written);             // limit: a copy from one place to another
Work updating(double read, double written);            // limit: reading and writing back; what is written is among what is read
Work product(Dtype, int64_t m, int64_t n, int64_t k);  // 2 m n k

// The tensors of a case.
class Memory {
 public:
  explicit Memory(Backend& backend) : backend_(backend) {}
  Tensor zeros(Dtype, Shape);
  Tensor random(Dtype, Shape, float scale = 1);   // uniform in (-scale, scale); u8: any byte
  Tensor ids(Shape, int64_t below);               // i32 in [0, below)
  Tensor of(const std::vector<int32_t>&, Shape);  // i32
  Codes4 codes(int64_t rows, int64_t cols);       // nf4 with 8-bit scales, as qlora stores a base
  Backend& backend() { return backend_; }

 private:
  Tensor take(Dtype, Shape);
  Backend& backend_;
  std::vector<Buffer> buffers_;
  uint64_t drawn_ = 0;
};

using Call = std::function<void()>;
using MakeCall = std::function<Call(Memory&)>;

class Bench {
 public:
  Bench(Backend& backend, MachineLimits& limits) : backend_(backend), limits_(limits) {}
  // Counters: GF/s or GB/s reached, and share, of the limit.
  void add(const std::string& name, Work, MakeCall);

 private:
  struct Ready {
    std::string name;
    std::unique_ptr<Memory> memory;
    Call call;
  };
  const Call& ready(const std::string& name, const MakeCall&);
  double limit(const Work&);

  Backend& backend_;
  MachineLimits& limits_;
  Ready ready_;  // the case that is run: Google Benchmark calls a case several times to find out how often to repeat it
};

const char* short_name(Dtype);                      // "bf16"
std::string sizes(std::initializer_list<int64_t>);  // "512x2048"

// One function per file of this folder.
void add_adamw(Bench&);
void add_attention(Bench&);
void add_codebook4(Bench&);
void add_cross_entropy(Bench&);
void add_elementwise(Bench&);
void add_embedding(Bench&);
void add_gemm(Bench&);
void add_gemm_codes(Bench&);
void add_gemm_few_rows(Bench&);
void add_rmsnorm(Bench&);
void add_rope(Bench&);
void add_swiglu(Bench&);

}  // namespace tessera
