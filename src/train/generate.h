// Generation: ids from logits, one at a time, through the pass's caches.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "train/pass.h"

namespace tessera {

struct SamplingOptions {
  double temperature = 0;  // 0: greedy
  int64_t top_k = 0;       // 0: all
  double top_p = 1;        // smallest set of tokens whose probability reaches it
  uint64_t seed = 42;
};

// The next id. Greedy: the first of the largest logits. Else: logits / temperature, top-k, softmax, top-p (Holtzman et al., 2020), and one
// draw from Rng(seed, Purpose::sample) at `index`.
int32_t sample(const std::vector<float>& logits, const SamplingOptions&, uint64_t index);

// Runs the prompt, then gives each new id to `on_id` until it returns false, an id of `stop` has come (it is given too), or `max_new` ids.
std::vector<int32_t> generate(Pass&, const std::vector<int32_t>& prompt, int64_t max_new, const std::vector<int64_t>& stop,
                              const SamplingOptions&, const std::function<bool(int32_t)>& on_id);

// Bytes of weights that are read for one new token: all but an embedding that is not the head as well.
double weight_bytes(const Model&);

}  // namespace tessera
