#include "backend/profile_table.h"

#include <algorithm>
#include <map>

#include "core/text.h"

namespace tessera {
namespace {

constexpr size_t most_shapes = 24;

std::string short_name(Dtype d) { return lower(name_of(d)); }

std::string padded(const std::string& text, size_t width) { return text + std::string(width - std::min(width, text.size()), ' '); }
std::string right(const std::string& text, size_t width) { return std::string(width - std::min(width, text.size()), ' ') + text; }
std::string percent(double part, double whole) { return whole > 0 ? fixed(100 * part / whole, 1) + " %" : "-"; }
std::string milli(double seconds) { return fixed(1e3 * seconds, 2); }

void add_row(ProfileLine& line, const StepProfile::Row& row, const ProfileLimits& limits) {
  const Operation& o = row.operation;
  Operation bytes_only = o;
  bytes_only.flops = 0;
  const double limit = row.calls * limits.seconds(o), by_bytes = row.calls * limits.seconds(bytes_only);
  line.calls += row.calls, line.seconds += row.seconds;
  line.flops += row.calls * o.flops, line.bytes += row.calls * o.bytes;
  line.limit_seconds += limit;
  if (limit > by_bytes) line.bound_by_flops += limit;
}

template <class Name>
std::vector<ProfileLine> grouped(const StepProfile& p, const ProfileLimits& limits, Name&& name) {
  std::map<std::string, ProfileLine> lines;
  for (const StepProfile::Row& row : p.operations) add_row(lines[name(row.operation)], row, limits);
  std::vector<ProfileLine> out;
  for (auto& [text, line] : lines) line.name = text, out.push_back(line);
  return out;
}

void sort_by_loss(std::vector<ProfileLine>& lines) {
  std::stable_sort(lines.begin(), lines.end(), [](const ProfileLine& a, const ProfileLine& b) { return a.lost() > b.lost(); });
}

std::string line_text(const ProfileLine& l, double step, size_t width) {
  const bool real = l.calls > 0;
  const std::string rate = !real || l.seconds <= 0                  ? "-"
                           : 2 * l.bound_by_flops > l.limit_seconds ? fixed(l.flops / l.seconds * 1e-9, 1) + " GF/s"
                                                                    : fixed(l.bytes / l.seconds * 1e-9, 2) + " GB/s";
  return str(padded(l.name, width), right(real ? fixed(l.calls, 1) : "-", 9), right(milli(l.seconds), 10),
             right(percent(l.seconds, step), 9), right(l.flops > 0 ? fixed(l.flops * 1e-9, 3) : "-", 10),
             right(real ? fixed(l.bytes * 1e-6, 2) : "-", 11), right(rate, 12), right(real ? percent(l.limit_seconds, l.seconds) : "-", 10),
             right(milli(l.lost()), 10));
}

void append_lines(std::vector<std::string>& out, const char* title, const std::vector<ProfileLine>& lines, size_t most, double step) {
  size_t width = std::string(title).size();
  const size_t shown = std::min(most, lines.size());
  for (size_t i = 0; i < shown; ++i) width = std::max(width, lines[i].name.size());
  out.push_back(str(padded(title, width), "    calls        ms    share     GFLOP         MB        rate  of limit   lost ms"));
  ProfileLine rest;
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i < shown) {
      out.push_back(line_text(lines[i], step, width));
      continue;
    }
    rest.calls += lines[i].calls, rest.seconds += lines[i].seconds, rest.flops += lines[i].flops, rest.bytes += lines[i].bytes;
    rest.limit_seconds += lines[i].limit_seconds, rest.bound_by_flops += lines[i].bound_by_flops;
  }
  if (shown < lines.size()) {
    rest.name = str(lines.size() - shown, " others");
    out.push_back(line_text(rest, step, width));
  }
}

void append_phases(std::vector<std::string>& out, const StepProfile& p) {
  out.emplace_back("phase                         ms    share   in operations");
  for (size_t i = 0; i < phase_count; ++i) {
    const StepProfile::PhaseRow& row = p.phases[i];
    if (row.seconds > 0)
      out.push_back(str(padded(name_of(Phase(i)), 22), right(milli(row.seconds), 10), right(percent(row.seconds, p.seconds), 9),
                        right(percent(row.in_operations, row.seconds), 16)));
  }
}

std::string sum_text(const StepProfile& p, const ProfileLimits& limits) {
  double seconds = 0, limit = 0;
  for (const StepProfile::PhaseRow& row : p.phases) seconds += row.in_operations;
  for (const StepProfile::Row& row : p.operations) limit += row.calls * limits.seconds(row.operation);
  return str("step ", milli(p.seconds), " ms, the mean of ", p.steps, p.steps == 1 ? " step" : " steps", ", ", p.first_step, " to ",
             p.last_step, p.first_step > 1 ? " (the first two are left out)" : "", "; in operations ", percent(seconds, p.seconds),
             "; with each at its limit ", milli(limit), " ms (", percent(limit, p.seconds), ")");
}

}  // namespace

std::vector<ProfileLine> lines_by_operation(const StepProfile& p, const ProfileLimits& limits) {
  std::vector<ProfileLine> lines = grouped(p, limits, [](const Operation& o) { return str(o.name, ' ', short_name(o.dtype)); });
  const StepProfile::PhaseRow& communication = p.phases[size_t(Phase::communication)];
  ProfileLine outside, waiting;
  outside.name = "outside operations", waiting.name = "waiting for weights";
  waiting.seconds = communication.seconds - communication.in_operations;
  outside.seconds = -waiting.seconds;
  for (const StepProfile::PhaseRow& row : p.phases) outside.seconds += row.seconds - row.in_operations;
  lines.push_back(outside), lines.push_back(waiting);
  sort_by_loss(lines);
  return lines;
}

std::vector<ProfileLine> lines_by_shape(const StepProfile& p, const ProfileLimits& limits) {
  std::vector<ProfileLine> lines =
      grouped(p, limits, [](const Operation& o) { return str(o.name, ' ', short_name(o.dtype), ' ', o.shapes()); });
  sort_by_loss(lines);
  return lines;
}

std::vector<std::string> profile_text(const StepProfile& p, const ProfileLimits& limits) {
  std::vector<std::string> out;
  if (p.steps == 0) return {"no step was taken"};
  out.push_back(sum_text(p, limits));
  out.push_back(str("limits: ", fixed(limits.bf16 * 1e-9, 0), " GF/s bf16 and ", fixed(limits.f32 * 1e-9, 0),
                    " GF/s f32 (products of 512x2048x512 and 512x2048x2048), ", fixed(limits.bytes * 1e-9, 1),
                    " GB/s (copies of 64 MiB),"));
  out.emplace_back("        the best this program itself reached before the first step; above 100 %: the numbers were in the cache");
  out.emplace_back();
  append_phases(out, p);
  out.emplace_back();
  const std::vector<ProfileLine> lines = lines_by_operation(p, limits);
  append_lines(out, "operation", lines, lines.size(), p.seconds);
  out.emplace_back();
  append_lines(out, "operation and shape", lines_by_shape(p, limits), most_shapes, p.seconds);
  if (!p.beside.empty()) {
    StepProfile gathers;
    gathers.operations = p.beside;
    out.emplace_back();
    append_lines(out, "beside the step (another thread)", lines_by_shape(gathers, limits), most_shapes, p.seconds);
  }
  return out;
}

}  // namespace tessera
