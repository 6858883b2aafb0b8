// Weights that a checkpoint already holds in 4 bits, as bitsandbytes and transformers save them: NAME.weight (codes), .absmax,
// .nested_absmax, .quant_state.bitsandbytes__nf4 (JSON). Source: bitsandbytes functional.py, QuantState; docs/formats.md.
#pragma once
#include <optional>
#include <string>

#include "io/safetensors.h"
#include "quant/format.h"

namespace tessera {

struct StoredCodes {
  const StoredTensor* codes = nullptr;   // any storage dtype; the bytes are what counts
  const StoredTensor* absmax = nullptr;  // F32, or U8 when nested
  const StoredTensor* nested_absmax = nullptr;
  float nested_offset = 0;
  bool nested() const { return nested_absmax != nullptr; }
};

// The stored codes of matrix `name` (out, in); nothing when the files hold it dense. Throws Error naming file and tensor for another type,
// block size, table or size than NF4 with blocks of 64.
std::optional<StoredCodes> find_stored_codes(const TensorFiles&, const std::string& name, int64_t out, int64_t in);
// NAME.weight for a tensor that belongs to stored codes ("NAME.weight.absmax"); "" for any other.
std::string owner_of_stored_part(const std::string& tensor);

}  // namespace tessera
