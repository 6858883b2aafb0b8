// The check that stands before every dispatch. What it reports is a mistake of the caller, not of the user.
#pragma once
#include <initializer_list>

#include "core/tensor.h"

namespace tessera {

// Throws Error that names the operation, what it takes, and the shapes and dtypes it was given, unless `holds`.
void require(bool holds, const char* operation, const char* takes, std::initializer_list<Tensor> given);

inline bool computes_in(Dtype dtype) { return dtype == Dtype::f32 || dtype == Dtype::bf16; }
inline bool same_kind(const Tensor& a, const Tensor& b) { return a.dtype == b.dtype && a.size() == b.size() && a.cols() == b.cols(); }
inline bool is_vector(const Tensor& t, Dtype dtype, int64_t size) { return t.dtype == dtype && t.size() == size; }

}  // namespace tessera
