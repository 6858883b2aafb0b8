// The narrow products that the adapters of layers with one input form of it; see core/adapter_product.h. Throws Error (for programmers:
// shapes) when sizes disagree.
#pragma once
#include <span>

#include "core/adapter_product.h"

namespace tessera {

// Whether these need no room where something is dropped: of the device of their tensors.
bool drops_inside(std::span<const AdapterProduct>);

// room (m, k) as x, or empty where nothing is dropped or drops_inside().
void adapters(std::span<const AdapterProduct>, Tensor x, Tensor room);                  // t = scale * drop(x) a^T
void adapters_backward(std::span<const AdapterProduct>, Tensor x, Tensor room);         // da += t^T drop(x)
void adapters_input_gradient(Tensor dx, std::span<const AdapterProduct>, Tensor room);  // dx += sum of drop(t a)

}  // namespace tessera
