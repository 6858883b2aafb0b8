#include "train/evaluate.h"

#include <cmath>
#include <optional>

#include "core/text.h"
#include "train/progress.h"

namespace tessera {

double Evaluation::perplexity() const { return std::exp(loss); }

Evaluation evaluate(Pass& pass, Comm& comm, const Dataset& data, int64_t batch_size, bool show_progress) {
  Loader loader(data, {batch_size, comm.size(), 0, false});
  const int64_t windows = loader.steps_per_epoch();
  std::optional<Progress> progress;
  if (show_progress) progress.emplace("evaluating", windows);
  Evaluation e;
  double sum = 0;
  for (int64_t w = 0; w < windows; ++w) {
    for (const Batch& b : loader.next(comm.rank(), comm.size())) {
      const double loss = pass.evaluate(b);
      for (const double of_rank : gather_values(comm, loss)) sum += of_rank;
      e.tokens += sum_of(comm, b.target_tokens);
      e.rows += sum_of(comm, b.B);
    }
    if (progress) progress->at(w + 1, e.tokens ? str("loss ", fixed(sum / double(e.tokens), 4)) : "");
  }
  e.loss = e.tokens ? sum / double(e.tokens) : 0;
  return e;
}

}  // namespace tessera
