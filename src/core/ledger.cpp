#include "core/ledger.h"

#include <algorithm>
#include <cassert>
#include <new>
#include <utility>

#include "core/text.h"

namespace tessera {
namespace {
std::mutex all_guard;
std::vector<const Ledger*> all;
}  // namespace

Ledger::Ledger() {
  const std::lock_guard lock(all_guard);
  all.push_back(this);
}

Ledger::~Ledger() {
  const std::lock_guard lock(all_guard);
  std::erase(all, this);
}

std::string Ledger::text_of_all() {
  const std::lock_guard lock(all_guard);
  std::string out;
  try {
    for (const Ledger* ledger : all)
      if (ledger->used()) out += str(out.empty() ? "" : "; ", human_bytes(ledger->used()), " (", ledger->text(), ")");
  } catch (const std::bad_alloc&) {
    return "";
  }
  return out.empty() ? "nothing that is counted" : out;
}

int Ledger::account(const char* what) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find(names_.begin(), names_.end(), what);
  if (found != names_.end()) return int(found - names_.begin());
  names_.emplace_back(what);
  bytes_.push_back(0);
  return int(names_.size()) - 1;
}

void Ledger::note_peak() {
  Phase& phase = phases_[phase_];
  if (used_ < phase.peak) return;
  phase.peak = used_;
  phase.bytes = bytes_;
}

void Ledger::take(int account, size_t bytes) {
  const std::lock_guard lock(mutex_);
  bytes_[size_t(account)] += bytes;
  used_ += bytes;
  note_peak();
}

void Ledger::give(int account, size_t bytes) {
  const std::lock_guard lock(mutex_);
  assert(bytes_[size_t(account)] >= bytes);
  bytes_[size_t(account)] -= bytes;
  used_ -= bytes;
}

void Ledger::enter(const char* phase) {
  const std::lock_guard lock(mutex_);
  const auto found = std::find_if(phases_.begin(), phases_.end(), [&](const Phase& p) { return p.name == phase; });
  phase_ = size_t(found - phases_.begin());
  if (found == phases_.end()) phases_.push_back({phase, 0, {}});
  note_peak();
}

size_t Ledger::used() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

size_t Ledger::peak() const {
  const std::lock_guard lock(mutex_);
  size_t peak = 0;
  for (const Phase& p : phases_) peak = std::max(peak, p.peak);
  return peak;
}

std::vector<Ledger::Holder> Ledger::holders() const {
  const std::lock_guard lock(mutex_);
  std::vector<Holder> out;
  for (size_t i = 0; i < names_.size(); ++i)
    if (bytes_[i]) out.push_back({names_[i], bytes_[i]});
  std::stable_sort(out.begin(), out.end(), [](const Holder& a, const Holder& b) { return a.bytes > b.bytes; });
  return out;
}

std::string Ledger::text() const {
  std::string out;
  const auto largest = holders();
  for (size_t i = 0; i < std::min<size_t>(5, largest.size()); ++i)
    out += str(i ? ", " : "", largest[i].what, " ", human_bytes(largest[i].bytes));
  return out.empty() ? "nothing" : out;
}

std::vector<Ledger::Peak> Ledger::peaks() const {
  const std::lock_guard lock(mutex_);
  std::vector<Peak> out;
  for (const Phase& p : phases_) {
    Peak peak{p.name, p.peak, {}};
    for (size_t i = 0; i < p.bytes.size(); ++i)
      if (p.bytes[i]) peak.holders.push_back({names_[i], p.bytes[i]});
    out.push_back(std::move(peak));
  }
  return out;
}

Charge::Charge(Ledger& ledger, const char* what, size_t bytes) : ledger_(&ledger), account_(ledger.account(what)), bytes_(bytes) {
  ledger.take(account_, bytes);
}
Charge::Charge(Charge&& other) noexcept : ledger_(std::exchange(other.ledger_, nullptr)), account_(other.account_), bytes_(other.bytes_) {}
Charge& Charge::operator=(Charge&& other) noexcept {
  std::swap(ledger_, other.ledger_);
  std::swap(account_, other.account_);
  std::swap(bytes_, other.bytes_);
  return *this;
}
Charge::~Charge() {
  if (ledger_) ledger_->give(account_, bytes_);
}

}  // namespace tessera
