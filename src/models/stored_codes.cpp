#include "models/stored_codes.h"

#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "io/json.h"

namespace tessera {
namespace {

constexpr const char* state_suffix = ".quant_state.bitsandbytes__";

[[noreturn]] void refuse(const StoredTensor& t, const std::string& given, const std::string& allowed) {
  fail(t.where(), given, allowed, "give the original, unquantized checkpoint; it is quantized while it is loaded");
}

void check_bytes(const StoredTensor& t, size_t bytes) {
  if (t.bytes != bytes) refuse(t, str("holds ", t.bytes, " bytes"), str(bytes, ", from the shape of the matrix"));
}

// Tables are constants; a file that brings others would be decoded wrongly.
void check_table(const TensorFiles& files, const std::string& name, const float* table, size_t count) {
  const StoredTensor& t = files.get(name);
  check_bytes(t, count * sizeof(float));
  if (std::memcmp(t.data, table, t.bytes) != 0)
    refuse(t, "is another table than bitsandbytes' own", "the NF4 table and the signed dynamic map");
}

}  // namespace

std::string owner_of_stored_part(const std::string& tensor) {
  for (const char* suffix : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"})
    if (ends_with(tensor, suffix)) return tensor.substr(0, tensor.size() - std::strlen(suffix));
  const size_t at = tensor.find(state_suffix);
  return at == std::string::npos ? "" : tensor.substr(0, at);
}

std::optional<StoredCodes> find_stored_codes(const TensorFiles& files, const std::string& name, int64_t out, int64_t in) {
  const StoredTensor* state = files.find(str(name, state_suffix, "nf4"));
  if (!state) {
    if (const StoredTensor* other = files.find(str(name, state_suffix, "fp4"))) refuse(*other, "is in fp4", "nf4 (fp4 is not read yet)");
    return std::nullopt;
  }
  const Json json = parse_json(std::string(reinterpret_cast<const char*>(state->data), state->bytes), state->where());
  if (json.value("blocksize", int64_t(0)) != block4)
    refuse(*state, str("has blocksize ", json.value("blocksize", int64_t(0))), str(block4));
  const Json shape = {out, in};
  if (json.value("shape", Json()) != shape) refuse(*state, str("has shape ", json.value("shape", Json()).dump()), shape.dump());
  const auto n = size_t(out * in), blocks = (n + block4 - 1) / block4;
  StoredCodes s{&files.get(name), &files.get(name + ".absmax"), files.find(name + ".nested_absmax"), 0};
  check_bytes(*s.codes, (n + 1) / 2);
  check_bytes(*s.absmax, s.nested() ? blocks : blocks * sizeof(float));
  check_table(files, name + ".quant_map", nf4_table(), 16);
  if (!s.nested()) return s;
  if (json.value("nested_blocksize", int64_t(0)) != nested_block) refuse(*state, "has another nested_blocksize", str(nested_block));
  check_bytes(*s.nested_absmax, (blocks + nested_block - 1) / nested_block * sizeof(float));
  check_table(files, name + ".nested_quant_map", dynamic_map(), 256);
  s.nested_offset = float(json.at("nested_offset").get<double>());
  return s;
}

}  // namespace tessera
