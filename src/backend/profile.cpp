#include "backend/profile.h"

#include <algorithm>
#include <cassert>
#include <chrono>

#include "core/text.h"

namespace tessera {
namespace {

thread_local Profile* profile_of_thread = nullptr;

constexpr double nano = 1e-9;

size_t hash_of(const Operation& o) {
  size_t h = reinterpret_cast<size_t>(o.name);
  for (int i = 0; i < o.rank; ++i) h = (h ^ size_t(o.sizes[size_t(i)])) * 0x9E3779B97F4A7C15u;
  return h ^ h >> 32;
}

// Microseconds, as the trace format has them.
std::string micro(int64_t nanoseconds) { return fixed(double(nanoseconds) / 1000, 3); }

Activity activity_of(Phase phase) {
  switch (phase) {
    case Phase::other:
    case Phase::communication:
      return Doing::now();
    case Phase::forward:
      return Activity::forward;
    case Phase::recompute:
      return Activity::recompute;
    case Phase::backward:
      return Activity::backward;
    case Phase::head:
      return Activity::head;
    case Phase::optimizer:
      return Activity::optimizer;
  }
  return Doing::now();
}

}  // namespace

std::string Operation::shapes() const {
  std::string out;
  for (int i = 0; i < rank; ++i) out += str(i == 0 ? "" : i >= added_from ? "+" : "x", sizes[size_t(i)]);
  if (*layout) out += str(' ', layout);
  if (four_bit) out += " 4-bit";
  if (drops) out += " dropout";
  if (accumulates) out += " +=";
  return out;
}

double ProfileLimits::seconds(const Operation& o) const {
  const double peak = o.dtype == Dtype::bf16 ? bf16 : f32;
  return std::max(peak > 0 ? o.flops / peak : 0, bytes > 0 ? o.bytes / bytes : 0);
}

const char* name_of(Phase p) {
  switch (p) {
    case Phase::other:
      return "other";
    case Phase::forward:
      return "forward";
    case Phase::recompute:
      return "recompute";
    case Phase::backward:
      return "backward";
    case Phase::head:
      return "head and loss";
    case Phase::optimizer:
      return "optimizer";
    case Phase::communication:
      return "communication, waiting";
  }
  return "";
}

Profile::Profile(int rank) : rank_(rank), start_(now()), threads_{std::this_thread::get_id()}, table_(256) {
  assert(!profile_of_thread);
  profile_of_thread = this;
}

Profile::~Profile() { profile_of_thread = nullptr; }

Profile* Profile::current() { return profile_of_thread; }

int64_t Profile::now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Profile::charge(int64_t now) {
  const Phase inner = open_.empty() ? Phase::other : open_.back().phase;
  sums_[steps_ >= left_out].phase[size_t(inner)] += now - changed_;
  changed_ = now;
}

void Profile::begin_step(int64_t number) {
  const std::lock_guard lock(mutex_);
  in_step_ = true;
  step_ = number;
  step_begin_ = changed_ = now();
  tracing_ = events_.size() < most_events;
}

void Profile::end_step() {
  const std::lock_guard lock(mutex_);
  const int64_t end = now();
  charge(end);
  in_step_ = false;
  Sums& sums = sums_[steps_ >= left_out];
  if (sums.steps++ == 0) sums.first = step_;
  sums.last = step_;
  sums.time += end - step_begin_;
  keep({step_begin_, end, step_, Kind::step, 0});
  traced_steps_ += tracing_;
  ++steps_;
}

void Profile::enter(Phase phase) {
  const std::lock_guard lock(mutex_);
  if (!in_step_) return;
  const int64_t begin = now();
  charge(begin);
  open_.push_back({phase, begin});
}

void Profile::leave() {
  const std::lock_guard lock(mutex_);
  if (!in_step_ || open_.empty()) return;
  const int64_t end = now();
  charge(end);
  keep({open_.back().begin, end, int64_t(open_.back().phase), Kind::phase, 0});
  open_.pop_back();
}

size_t Profile::index_of(const Operation& o) {
  if (2 * operations_.size() >= table_.size()) {
    std::vector<size_t> larger(2 * table_.size());
    for (size_t i = 0; i < operations_.size(); ++i) {
      size_t at = hash_of(operations_[i]) % larger.size();
      while (larger[at]) at = (at + 1) % larger.size();
      larger[at] = i + 1;
    }
    table_ = std::move(larger);
  }
  size_t at = hash_of(o) % table_.size();
  while (table_[at] && !(operations_[table_[at] - 1] == o)) at = (at + 1) % table_.size();
  if (!table_[at]) {
    operations_.push_back(o);
    table_[at] = operations_.size();
  }
  return table_[at] - 1;
}

uint8_t Profile::lane_of(std::thread::id id) {
  const auto found = std::find(threads_.begin(), threads_.end(), id);
  const auto lane = uint8_t(found - threads_.begin());
  if (found == threads_.end()) threads_.push_back(id);
  return lane;
}

void Profile::record(const Operation& o, int64_t begin, int64_t end) {
  const std::lock_guard lock(mutex_);
  if (!in_step_) return;
  const size_t index = index_of(o);
  const uint8_t lane = lane_of(std::this_thread::get_id());
  Sums& sums = sums_[steps_ >= left_out];
  std::vector<Use>& uses = lane ? sums.beside : sums.uses;
  if (uses.size() <= index) uses.resize(index + 1);
  ++uses[index].calls;
  uses[index].time += end - begin;
  if (!lane) sums.in_operations[size_t(open_.empty() ? Phase::other : open_.back().phase)] += end - begin;
  keep({begin, end, int64_t(index), Kind::operation, lane});
}

StepProfile Profile::average() const {
  const std::lock_guard lock(mutex_);
  const Sums& s = sums_[sums_[1].steps > 0];
  StepProfile out;
  out.first_step = s.first, out.last_step = s.last, out.steps = s.steps;
  const double steps = double(std::max<int64_t>(1, s.steps)), share = nano / steps;
  out.seconds = double(s.time) * share;
  const auto rows = [&](const std::vector<Use>& uses) {
    std::vector<StepProfile::Row> all;
    for (size_t i = 0; i < uses.size(); ++i)
      if (uses[i].calls) all.push_back({operations_[i], double(uses[i].calls) / steps, double(uses[i].time) * share});
    return all;
  };
  out.operations = rows(s.uses), out.beside = rows(s.beside);
  for (size_t p = 0; p < phase_count; ++p) out.phases[p] = {double(s.phase[p]) * share, double(s.in_operations[p]) * share};
  return out;
}

std::string Profile::text_of(const Event& e, int64_t origin) const {
  const std::string place = str(R"("ph":"X","ts":)", micro(e.begin - origin), R"(,"dur":)", micro(e.end - e.begin), R"(,"pid":)", rank_,
                                R"(,"tid":)", int(e.lane));
  if (e.kind == Kind::step) return str(R"({"name":"step )", e.what, R"(","cat":"step",)", place, "}");
  if (e.kind == Kind::phase) return str(R"({"name":")", name_of(Phase(e.what)), R"(","cat":"phase",)", place, "}");
  const Operation& o = operations_[size_t(e.what)];
  return str(R"({"name":")", o.name, R"(","cat":"operation",)", place, R"(,"args":{"shapes":")", o.shapes(), R"(","dtype":")",
             torch_name(o.dtype), R"(","flops":)", int64_t(o.flops), R"(,"bytes":)", int64_t(o.bytes), "}}");
}

std::string Profile::trace(int64_t origin) const {
  const std::lock_guard lock(mutex_);
  std::string out = str(R"({"name":"process_name","ph":"M","pid":)", rank_, R"(,"args":{"name":"rank )", rank_, R"("}})");
  for (size_t lane = 0; lane < threads_.size(); ++lane)
    out += str(",\n", R"({"name":"thread_name","ph":"M","pid":)", rank_, R"(,"tid":)", lane, R"(,"args":{"name":")",
               lane ? "beside the steps" : "steps", R"("}})");
  for (const Event& e : events_) out += ",\n" + text_of(e, origin);
  return out;
}

ProfileStep::ProfileStep(int64_t number) : profile_(Profile::current()) {
  if (profile_) profile_->begin_step(number);
}
ProfileStep::~ProfileStep() {
  if (profile_) profile_->end_step();
}

ProfileScope::ProfileScope(Phase phase) : doing_(activity_of(phase)), profile_(Profile::current()) {
  if (profile_) profile_->enter(phase);
}
ProfileScope::~ProfileScope() {
  if (profile_) profile_->leave();
}

std::string trace_file(const std::vector<std::string>& events_of_ranks) {
  return str("{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n", join(events_of_ranks, ",\n"), "\n]}\n");
}

}  // namespace tessera
