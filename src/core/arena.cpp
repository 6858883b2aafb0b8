#include "core/arena.h"

#include <algorithm>
#include <cassert>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {
constexpr size_t alignment = 64;
}

Arena::Arena(Backend* home, Buffer memory, Ledger* ledger) : home_(home), memory_(std::move(memory)), ledger_(ledger) {}

Tensor Arena::take(Dtype dtype, Shape shape, const char* name) {
  const size_t bytes = (size_t(shape.size()) * size_of(dtype) + alignment - 1) / alignment * alignment;
  if (bytes > memory_.bytes() - top_) out_of_memory(bytes, name);
  holders_.push_back({name, top_, bytes, ledger_ ? ledger_->account(label_) : 0});
  if (ledger_) ledger_->take(holders_.back().account, bytes);
  Tensor t{memory_.data() + top_, dtype, shape, home_};
  top_ += bytes;
  high_water_ = std::max(high_water_, top_);
  return t;
}

void Arena::rewind(Mark mark) {
  assert(mark <= top_);
  while (!holders_.empty() && holders_.back().begin >= mark) {
    if (ledger_) ledger_->give(holders_.back().account, holders_.back().bytes);
    holders_.pop_back();
  }
  top_ = mark;
}

void Arena::out_of_memory(size_t bytes, const char* name) const {
  std::vector<Holder> largest = holders_;
  std::sort(largest.begin(), largest.end(), [](const Holder& a, const Holder& b) { return a.bytes > b.bytes; });
  std::string holders;
  for (size_t i = 0; i < std::min<size_t>(5, largest.size()); ++i)
    holders += str(i ? ", " : "", largest[i].name, " ", human_bytes(largest[i].bytes));
  fail(str("activation memory, tensor ", name),
       str("needs ", human_bytes(bytes), " more, ", human_bytes(top_), " of ", human_bytes(memory_.bytes()),
           " are in use (largest: ", holders, ")"),
       "what fits beside the weights", "lower --batch_size or --context_length, or set --gradient_checkpointing true");
}

}  // namespace tessera
