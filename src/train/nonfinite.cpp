#include "train/nonfinite.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "io/json.h"

namespace tessera {
namespace {

constexpr size_t most_named = 3;

template <class T>
int64_t first_with_all(Tensor x, T exponent) {
  const T* const begin = x.as<const T>();
  const T* const end = begin + x.size();
  const T* const found = std::find_if(begin, end, [&](T bits) { return (bits & exponent) == exponent; });
  return found == end ? -1 : found - begin;
}

int64_t first_on_host(Tensor x) {
  switch (x.dtype) {
    case Dtype::f32:
      return first_with_all<uint32_t>(x, 0x7f800000u);
    case Dtype::bf16:
      return first_with_all<uint16_t>(x, 0x7f80);
    case Dtype::f16:
      return first_with_all<uint16_t>(x, 0x7c00);
    case Dtype::f64:
      return first_with_all<uint64_t>(x, 0x7ff0000000000000u);
    default:
      return -1;
  }
}

std::string name_of_number(double x) { return std::isnan(x) ? "NaN" : x > 0 ? "infinity" : "-infinity"; }

struct Place {
  int unit = 0;
  const PartPlace* part = nullptr;
};

// Stored arrays in the order in which a forward pass reads them. Backward, gradients are made in the reverse of it.
std::vector<Place> forward_order(const Model& m) {
  std::vector<Place> out;
  const auto& root = m.units[size_t(m.root_unit())].parts;
  const auto add_root = [&](bool embedding) {
    for (const PartPlace& p : root)
      if ((p.name == "model.embed_tokens.weight") == embedding) out.push_back({m.root_unit(), &p});
  };
  add_root(true);
  for (int unit = 0; unit < m.root_unit(); ++unit)
    for (const PartPlace& p : m.units[size_t(unit)].parts) out.push_back({unit, &p});
  add_root(false);
  return out;
}

// This rank's elements of a stored array in a buffer that holds `mine` of the unit; `width` is what one step of the ranges is in bytes.
Tensor owned_part(std::byte* data, Range mine, Range whole, size_t width, Dtype dtype, Backend& home) {
  const Range own = intersect(whole, mine);
  if (!own.size()) return {};
  return {data + (own.begin - mine.begin) * width, dtype, {int64_t(own.size() * width / size_of(dtype))}, &home};
}

Tensor trained_part(Sharded& s, const Place& p, Tensor owned) {
  return owned_part(owned.as<std::byte>(), s.trainable_range(p.unit), p.part->element_range(), sizeof(float), Dtype::f32, *owned.home);
}

Tensor stored_part(LoadedModel& m, const Place& p) {
  Sharded& s = m.sharded;
  if (p.part->trains) return trained_part(s, p, s.values(p.unit));
  return owned_part(s.frozen_shard(p.unit), s.frozen_range(p.unit), p.part->frozen_range(), 1, p.part->dtype, m.backend);
}

Tensor gradient_part(LoadedModel& m, const Place& p) {
  return p.part->trains ? trained_part(m.sharded, p, m.sharded.gradients(p.unit)) : Tensor{};
}

// Indices of the places where some rank holds a value that is not finite. Collective.
template <class PartOf>
std::set<int64_t> bad_places(LoadedModel& m, const std::vector<Place>& places, PartOf part_of) {
  std::string mine;
  for (size_t i = 0; i < places.size(); ++i) {
    const Tensor t = part_of(m, places[i]);
    if (!t.empty() && first_nonfinite(t) >= 0) mine += str(i, " ");
  }
  std::set<int64_t> all;
  for (const std::string& of_rank : gather_strings(m.comm, mine))
    for (const std::string& index : split(of_rank, ' '))
      if (!index.empty()) all.insert(std::stoll(index));
  return all;
}

// What a forward pass shows: 0 is the embedding's output, 1 + l that of layer l, 1 + layers the logits; -1: all of it is finite.
struct Look {
  int64_t stage = -1, row = -1, token = -1;
};
struct Looking {
  const Batch& batch;
  Look look;
};

void look_at(void* context, int layer, Tensor x) {
  auto& [batch, look] = *static_cast<Looking*>(context);
  if (look.stage >= 0) return;
  const int64_t i = first_nonfinite(x);
  if (i < 0) return;
  const int64_t place = i / x.cols();
  look = {layer + 1, batch.rows[size_t(place / batch.T)], place % batch.T};
}

std::string stage_name(int64_t stage, int64_t layers) {
  if (stage == 0) return "embedding output";
  return stage <= layers ? str("output of model.layers.", stage - 1) : "logits";
}

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> out;
  for (const std::string& word : split(text, ' '))
    if (!word.empty()) out.push_back(std::stoll(word));
  return out;
}

std::string words(const std::vector<int64_t>& values) {
  std::string out;
  for (const int64_t v : values) out += str(v, " ");
  return out;
}

// Runs the micro-batches of the step once more and fills in where the first bad number is.
void look_forward(LoadedModel& m, const NonfiniteStep& s, NonfiniteFinding& f) {
  const int64_t layers = int64_t(m.model.layers.size());
  for (size_t i = 0; i < s.batches.size(); ++i) {
    Looking mine{s.batches[i], {}};
    const double loss = m.pass.train_forward(mine.batch, look_at, &mine);
    if (mine.look.stage < 0 && !std::isfinite(loss)) mine.look.stage = layers + 1;
    const auto looks = gather_strings(m.comm, words({mine.look.stage, mine.look.row, mine.look.token, mine.batch.target_tokens}));
    const auto rows = gather_strings(m.comm, words(mine.batch.rows));
    for (size_t r = 0; r < looks.size(); ++r) {
      const auto look = numbers(looks[r]);
      if (rows[r].empty()) continue;
      if (f.where.empty() && look[0] >= 0) {
        f.where = stage_name(look[0], layers);
        f.micro_batch = int64_t(f.micro_batches.size()), f.row = look[1], f.token = look[2];
      }
      f.micro_batches.push_back({s.losses[i * looks.size() + r], look[3], numbers(rows[r])});
    }
  }
}

std::string seen_of(const NonfiniteStep& s, bool bad_gradient) {
  for (const double loss : s.losses)
    if (!std::isfinite(loss)) return str("the loss is ", name_of_number(loss));
  return bad_gradient ? "a gradient is not finite" : "the gradient is longer than fp32 can say";
}

std::string report_path(const std::string& output, int64_t step) { return str(output, "/nonfinite-", step, ".json"); }

std::vector<std::string> names_of(const std::set<int64_t>& bad, const std::vector<Place>& places) {
  std::vector<std::string> out;
  for (const int64_t i : bad) out.push_back(places[size_t(i)].part->name);
  return out;
}

std::string list_of(std::vector<std::string> names) {
  const size_t all = names.size();
  names.resize(std::min(all, most_named));
  return str(join(names, ", "), all > most_named ? str(" and ", all - most_named, " more") : "");
}

std::string advice(const NonfiniteFinding& f, const NonfiniteStep& s, const TrainConfig& c) {
  const std::string smaller = str("a lower --lr (now ", c.lr, ")", c.max_grad_norm > 0 ? "" : ", --max_grad_norm 1",
                                  c.precision == "fp32" ? "" : ", or --precision fp32");
  const std::string written = str("; the rows of the step are in ", report_path(c.output_dir, s.step));
  if (f.trained) return str("an earlier step has spoilt what is trained: train again with ", smaller, written);
  if (!f.tensors.empty()) return str("the base holds it: get ", c.model, " again", written);
  const std::string rows = f.row >= 0 ? str("row ", f.row) : "the rows";
  return str("look at ", rows, " of ", s.data, "; train with ", smaller, "; --max_skipped_steps N goes past N such steps", written);
}

}  // namespace

int64_t first_nonfinite(Tensor x) {
  if (!x.home || !x.size() || !x.home->on_device(x.data)) return first_on_host(x);
  constexpr int64_t piece = int64_t(1) << 22;  // elements that are looked at on the host at once
  std::vector<std::byte> host;
  for (int64_t at = 0; at < x.size(); at += piece) {
    const int64_t n = std::min(piece, x.size() - at);
    host.resize(size_t(n) * size_of(x.dtype));
    x.home->copy(host.data(), x.as<std::byte>() + size_t(at) * size_of(x.dtype), host.size());
    if (const int64_t i = first_on_host({host.data(), x.dtype, {n}, nullptr}); i >= 0) return at + i;
  }
  return -1;
}

std::string NonfiniteFinding::details() const {
  std::string text = seen;
  if (row >= 0) text += str(", first in row ", row, " (from 0), token ", token);
  if (!tensors.empty()) text += str("; not finite already: ", list_of(tensors));
  return text;
}

std::string NonfiniteFinding::reason() const { return str(where, ": ", details()); }

NonfiniteFinding find_nonfinite(LoadedModel& m, const NonfiniteStep& s) {
  NonfiniteFinding f;
  const std::vector<Place> places = forward_order(m.model);
  const std::set<int64_t> gradients = bad_places(m, places, gradient_part);
  const std::set<int64_t> values = bad_places(m, places, stored_part);
  f.tensors = names_of(values, places);
  f.trained = std::any_of(values.begin(), values.end(), [&](int64_t i) { return places[size_t(i)].part->trains; });
  f.seen = seen_of(s, !gradients.empty());
  look_forward(m, s, f);
  if (!f.where.empty()) return f;
  if (!gradients.empty())
    f.where = str("gradient of ", places[size_t(*gradients.rbegin())].part->name);
  else if (starts_with(f.seen, "the loss"))
    f.where = "nowhere in the same forward pass run again: the machine computed something else";
  else
    f.where = "all gradients";
  return f;
}

void write_nonfinite(const NonfiniteFinding& f, const NonfiniteStep& s, bool skipped, const std::string& output, const Comm& comm) {
  if (comm.rank() != 0) return;
  Json batches = Json::array();
  for (const auto& b : f.micro_batches) {
    const Json loss = std::isfinite(b.loss) ? Json(b.loss) : Json(name_of_number(b.loss));
    batches.push_back({{"loss", loss}, {"target_tokens", b.target_tokens}, {"rows", b.rows}});
  }
  const auto known = [](int64_t n) { return n < 0 ? Json() : Json(n); };
  const Json report = {{"step", s.step},      {"epoch", s.place.epoch},  {"window", s.place.window}, {"file", s.data},
                       {"skipped", skipped},  {"seen", f.seen},          {"where", f.where},         {"micro_batch", known(f.micro_batch)},
                       {"row", known(f.row)}, {"token", known(f.token)}, {"tensors", f.tensors},     {"micro_batches", batches}};
  write_file_atomic(report_path(output, s.step), report.dump(1) + "\n");
}

void clear_later_nonfinite(const std::string& output, int64_t done) {
  const std::string head = "nonfinite-", tail = ".json";
  for (const std::string& name : list_folder(output)) {
    if (!starts_with(name, head) || !ends_with(name, tail)) continue;
    const std::string digits = name.substr(head.size(), name.size() - head.size() - tail.size());
    const bool number = !digits.empty() && digits.size() < 18 && digits.find_first_not_of("0123456789") == std::string::npos;
    if (number && std::stoll(digits) > done) remove_all(str(output, "/", name));
  }
}

std::string skip_or_stop(LoadedModel& m, const NonfiniteStep& s, int64_t skipped, const TrainConfig& c) {
  const NonfiniteFinding f = find_nonfinite(m, s);
  const bool skip = skipped < c.max_skipped_steps;
  write_nonfinite(f, s, skip, c.output_dir, m.comm);
  if (skip) return f.reason();
  if (m.comm.rank() != 0) m.comm.barrier();  // rank 0 speaks for all: its end is the end of this one
  fail(str("step ", s.step, ", ", f.where), f.details(),
       c.max_skipped_steps
           ? str("a finite loss and gradient; --max_skipped_steps ", c.max_skipped_steps, ", and ", skipped, " were skipped")
           : "a finite loss and gradient",
       advice(f, s, c));
}

namespace {
std::vector<Place> trained_places(const LoadedModel& m) {
  std::vector<Place> trained;
  for (const Place& p : forward_order(m.model))
    if (p.part->trains) trained.push_back(p);
  return trained;
}
}  // namespace

bool trained_values_finite(LoadedModel& m) { return bad_places(m, trained_places(m), stored_part).empty(); }

void check_values_finite(LoadedModel& m, int64_t step) {
  const std::vector<Place> trained = trained_places(m);
  const std::set<int64_t> bad = bad_places(m, trained, stored_part);
  if (bad.empty()) return;
  fail(str("after step ", step), str("not finite: ", list_of(names_of(bad, trained))), "values that can be trained on",
       "nothing is written: train again with a lower --lr, --max_grad_norm 1, or --precision fp32");
}

}  // namespace tessera
