#include "testing/faulty_disk.h"

#include <cassert>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>
#include <utility>

#include "io/file.h"

namespace tessera {
namespace fs = std::filesystem;
namespace {

std::string normal(std::string_view path) {
  std::string out = fs::absolute(fs::path(path)).lexically_normal().string();
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  return out;
}

bool below(const std::string& path, const std::string& root) {
  return path.size() > root.size() && path.compare(0, root.size(), root) == 0 && path[root.size()] == '/';
}

bool needs_space(const DiskCall& c) { return c.act == DiskAct::make_folder || c.act == DiskAct::open || c.act == DiskAct::write; }

// What is left of a file: the synced bytes, and of the ones after them none, some, or as many of nothing but zeros or garbage.
std::string left_of(const std::string& now, const std::string& synced, std::mt19937_64& random) {
  if (now == synced) return now;
  if (now.compare(0, synced.size(), synced) != 0) return random() % 2 ? now : synced;
  const size_t more = now.size() - synced.size(), some = synced.size() + random() % (more + 1);
  switch (random() % 4) {
    case 0:
      return synced;
    case 1:
      return now.substr(0, some);
    case 2:
      return now.substr(0, some) + std::string(now.size() - some, '\0');
    default: {
      std::string out = now;
      for (size_t i = some; i < out.size(); ++i) out[i] = char(random());
      return out;
    }
  }
}

}  // namespace

FaultyDisk::FaultyDisk(const std::string& root, DiskFaults faults) : root_(normal(root)), faults_(faults) {
  load(root_);
  set_disk_hook({[this](const DiskCall& c) { return before(c); }, [this](const DiskCall& c, size_t done) { after(c, done); }});
}

FaultyDisk::~FaultyDisk() { heal(); }
void FaultyDisk::heal() { set_disk_hook({}); }

std::vector<std::string> FaultyDisk::changes() const {
  const std::lock_guard lock(guard_);
  return changes_;
}
bool FaultyDisk::crashed() const {
  const std::lock_guard lock(guard_);
  return crashed_;
}

DiskAnswer FaultyDisk::before(const DiskCall& c) {
  const std::string path = normal(c.path);
  if (!below(path, root_) && path != root_) return {};
  if (faults_.pause.count()) std::this_thread::sleep_for(faults_.pause);
  const std::lock_guard lock(guard_);
  if (crashed_) throw SimulatedCrash{};
  const int64_t number = int64_t(changes_.size());
  if (faults_.interrupted_every && number % faults_.interrupted_every == 0 && !std::exchange(interrupted_, true)) return {EINTR};
  const bool half = faults_.torn && c.act == DiskAct::write && c.bytes.size() > 1;
  if (faults_.crash_at >= 0 && number >= faults_.crash_at + half) {
    crashed_ = true;
    throw SimulatedCrash{};
  }
  interrupted_ = false;
  changes_.push_back(std::string(name_of(c.act)) + " " + (path == root_ ? "." : path.substr(root_.size() + 1)));
  const bool renames = c.act == DiskAct::rename || c.act == DiskAct::exchange;
  const int64_t counted = faults_.only_renames ? (renames ? renames_ : -1) : number;
  renames_ += renames;
  if (faults_.fail_at >= 0 && counted == faults_.fail_at) full_ = faults_.error == ENOSPC;
  if ((faults_.fail_at >= 0 && counted == faults_.fail_at) || (full_ && needs_space(c))) return {faults_.error};
  if (c.act == DiskAct::exchange && !faults_.exchanges) return {EINVAL};
  if (faults_.crash_at == number) return {0, c.bytes.size() / 2};
  return {0, faults_.most_per_write ? faults_.most_per_write : size_t(-1)};
}

int FaultyDisk::load(const std::string& path) {
  const int node = int(nodes_.size());
  nodes_.emplace_back();
  nodes_.back().folder = fs::is_directory(path);
  if (!nodes_.back().folder) {
    nodes_[size_t(node)].now = nodes_[size_t(node)].synced = read_file(path);
    return node;
  }
  for (const std::string& name : list_folder(path)) {
    const int child = load(path + "/" + name);
    nodes_[size_t(node)].names[name] = nodes_[size_t(node)].synced_names[name] = child;
  }
  return node;
}

int FaultyDisk::find(const std::string& path) const {
  if (path == root_) return 0;
  const int folder = parent(path);
  if (folder < 0) return -1;
  const auto& names = nodes_[size_t(folder)].names;
  const auto found = names.find(file_name(path));
  return found == names.end() ? -1 : found->second;
}

int FaultyDisk::parent(const std::string& path) const { return find(parent_folder(path)); }

void FaultyDisk::change_names(const std::string& path, std::vector<std::pair<std::string, int>> names) {
  const int folder = parent(path);
  assert(folder >= 0);
  for (const auto& [name, node] : names) {
    if (node < 0) {
      nodes_[size_t(folder)].names.erase(name);
    } else {
      nodes_[size_t(folder)].names[name] = node;
    }
  }
  unsynced_.push_back({folder, std::move(names)});
}

void FaultyDisk::sync_names(int folder) {
  nodes_[size_t(folder)].synced_names = nodes_[size_t(folder)].names;
  std::erase_if(unsynced_, [&](const Renaming& r) { return r.folder == folder; });
}

void FaultyDisk::after(const DiskCall& c, size_t done) {
  const std::string path = normal(c.path), to = c.to.empty() ? "" : normal(c.to);
  if (!below(path, root_) && path != root_) return;
  const std::lock_guard lock(guard_);
  const int node = find(path);
  const bool makes = c.act == DiskAct::make_folder || c.act == DiskAct::open;
  assert(node >= 0 || makes);
  if (makes && node < 0) {
    nodes_.emplace_back();
    nodes_.back().folder = c.act == DiskAct::make_folder;
    change_names(path, {{file_name(path), int(nodes_.size()) - 1}});
    return;
  }
  Node& n = nodes_[size_t(node)];
  // The model knows renames within one folder only; the program makes no others.
  assert(to.empty() || parent_folder(path) == parent_folder(to));
  switch (c.act) {
    case DiskAct::open:
      if (c.fresh) n.now.clear();
      break;
    case DiskAct::write:
      n.now.append(reinterpret_cast<const char*>(c.bytes.data()), done);
      break;
    case DiskAct::cut:
      n.now.resize(c.size);
      break;
    case DiskAct::sync:
      n.synced = n.now;
      break;
    case DiskAct::sync_folder:
      sync_names(node);
      break;
    case DiskAct::rename:
      change_names(path, {{file_name(path), -1}, {file_name(to), node}});
      break;
    case DiskAct::exchange:
      change_names(path, {{file_name(path), find(to)}, {file_name(to), node}});
      break;
    case DiskAct::remove:
    case DiskAct::remove_folder:
      change_names(path, {{file_name(path), -1}});
      break;
    case DiskAct::make_folder:
    case DiskAct::close:
      break;
  }
}

void FaultyDisk::lose_power(uint64_t seed) {
  heal();
  std::mt19937_64 random(seed);
  for (const Renaming& r : unsynced_) {
    const bool survives = seed == 1 || (seed > 1 && random() % 2);
    auto& names = nodes_[size_t(r.folder)].synced_names;
    for (const auto& [name, node] : r.names) {
      if (!survives) continue;
      if (node < 0) {
        names.erase(name);
      } else {
        names[name] = node;
      }
    }
  }
  fs::remove_all(root_);
  write_out(0, root_, seed);
}

void FaultyDisk::write_out(int node, const std::string& path, uint64_t seed) const {
  const Node& n = nodes_[size_t(node)];
  if (n.folder) {
    fs::create_directory(path);
    for (const auto& [name, child] : n.synced_names) write_out(child, path + "/" + name, seed);
    return;
  }
  std::mt19937_64 random(seed * 1'000'003 + uint64_t(node));
  const std::string content = seed < 2 ? n.synced : left_of(n.now, n.synced, random);
  std::ofstream(path, std::ios::binary).write(content.data(), std::streamsize(content.size()));
}

}  // namespace tessera
