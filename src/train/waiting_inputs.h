// WaitingInputs: inputs of the first layers that wait in the host's pinned memory from forward to backward. On a device stand two of them:
// that of the layer which computes, and the next one, on its way. Copies run beside the computation.
#pragma once
#include <array>
#include <cstddef>

#include "backend/backend.h"

namespace tessera {

class WaitingInputs {
 public:
  // Of so many layers, each of at most so many bytes.
  WaitingInputs(Backend&, int layers, size_t bytes);
  ~WaitingInputs();
  WaitingInputs(const WaitingInputs&) = delete;
  WaitingInputs& operator=(const WaitingInputs&) = delete;

  int layers() const { return layers_; }
  void begin(Tensor even, Tensor odd);  // a new pass, and memory for the inputs of layers with even and odd numbers
  Tensor place(int layer);              // where Lane::compute may form the input of this layer
  void send(int layer);                 // to the host, when it is formed; here it stays until place(layer + 2)
  void fetch(int layer);                // back, when the one of layer + 2 is no longer used; no effect when it still stands there
  Tensor take(int layer);               // Lane::compute may use it

 private:
  struct Place {
    Tensor input;
    int layer = -1;
    Moment moved = 0;
  };
  Place& place_of(int layer) { return places_[size_t(layer % 2)]; }

  Backend& backend_;
  const int layers_;
  const size_t bytes_;
  Buffer host_;
  std::array<Place, 2> places_;
};

}  // namespace tessera
