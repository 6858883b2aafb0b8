#include "train/waiting_inputs.h"

#include <cassert>
#include <exception>

namespace tessera {

WaitingInputs::WaitingInputs(Backend& backend, int layers, size_t bytes) : backend_(backend), layers_(layers), bytes_(bytes) {
  if (layers > 2) host_ = backend.allocate_pinned(size_t(layers - 2) * bytes, "saved activations");
}

WaitingInputs::~WaitingInputs() {
  if (std::uncaught_exceptions() == 0) backend_.finish();
}

void WaitingInputs::begin(Tensor even, Tensor odd) {
  assert(even.bytes() <= bytes_ && odd.bytes() <= bytes_);
  for (Place& p : places_) p.layer = -1;
  places_[0].input = even, places_[1].input = odd;
}

Tensor WaitingInputs::place(int layer) {
  Place& p = place_of(layer);
  backend_.wait(Lane::compute, p.moved);
  p.layer = layer;
  return p.input;
}

void WaitingInputs::send(int layer) {
  Place& p = place_of(layer);
  assert(p.layer == layer);
  if (layer + 2 >= layers_) return;  // nothing takes its place
  backend_.wait(Lane::to_host, backend_.now(Lane::compute));
  backend_.copy_beside(host_.data() + size_t(layer) * bytes_, p.input.data, p.input.bytes());
  p.moved = backend_.now(Lane::to_host);
}

void WaitingInputs::fetch(int layer) {
  Place& p = place_of(layer);
  if (p.layer == layer) return;
  backend_.wait(Lane::to_device, backend_.now(Lane::compute));
  backend_.copy_beside(p.input.data, host_.data() + size_t(layer) * bytes_, p.input.bytes());
  p.moved = backend_.now(Lane::to_device);
  p.layer = layer;
}

Tensor WaitingInputs::take(int layer) {
  fetch(layer);
  backend_.wait(Lane::compute, place_of(layer).moved);
  return place_of(layer).input;
}

}  // namespace tessera
