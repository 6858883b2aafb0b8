#include "comm/rank_device.h"

#include <dlfcn.h>

#include <algorithm>
#include <set>

#include "backend/backend.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

// Schedulers give a rank one GPU, which then is its number 0, as it is for every other rank: the bus tells them apart.
std::string bus_address(int device) {
  static void* const driver = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!driver) return "";
  const auto init = reinterpret_cast<int (*)(unsigned)>(::dlsym(driver, "cuInit"));
  const auto get = reinterpret_cast<int (*)(int*, int)>(::dlsym(driver, "cuDeviceGet"));
  const auto address = reinterpret_cast<int (*)(char*, int, int)>(::dlsym(driver, "cuDeviceGetPCIBusId"));
  int handle = 0;
  char text[32] = "";
  const bool known = init && get && address && init(0) == 0 && get(&handle, device) == 0 && address(text, sizeof text, handle) == 0;
  return known ? text : "";
}

// What the ranks of this node may use, and this rank's place among them.
struct Node {
  std::vector<std::vector<std::string>> gpus;
  size_t mine = 0;
};

Node node_of(Comm& comm, const std::vector<std::string>& all) {
  const std::vector<int64_t> nodes = gather_values(comm, int64_t(comm.node()));
  Node node;
  for (size_t r = 0; r < all.size(); ++r) {
    if (nodes[r] != comm.node()) continue;
    if (int(r) == comm.rank()) node.mine = node.gpus.size();
    node.gpus.push_back(all[r].empty() ? std::vector<std::string>{} : split(all[r], ' '));
  }
  return node;
}

[[noreturn]] void too_few(const std::string& asked, const Node& node) {
  std::set<std::string> different;
  for (const auto& gpus : node.gpus) different.insert(gpus.begin(), gpus.end());
  fail(str("--device ", asked),
       str(node.gpus.size(), " ranks on a machine, which show ", different.size(), different.size() == 1 ? " GPU" : " GPUs", " to them"),
       "one rank for each GPU", str("start ", different.size(), " on it, name more GPUs in CUDA_VISIBLE_DEVICES, or --device cpu"));
}

}  // namespace

std::vector<std::string> usable_gpus() {
  std::vector<std::string> all;
  for (int i = 0; i < cuda_devices(); ++i) {
    const std::string address = bus_address(i);
    all.push_back(address.empty() ? str("number-", i) : address);
  }
  return all;
}

std::vector<int> assign_gpus(const std::vector<std::vector<std::string>>& gpus) {
  std::set<std::string> taken;
  std::vector<int> assigned;
  for (const auto& mine : gpus) {
    const auto first = std::find_if(mine.begin(), mine.end(), [&](const std::string& g) { return !taken.count(g); });
    assigned.push_back(first == mine.end() ? -1 : int(first - mine.begin()));
    if (first != mine.end()) taken.insert(*first);
  }
  return assigned;
}

std::string rank_device(const std::string& asked, Comm& comm) {
  const bool one_gpu = starts_with(asked, "cuda:");
  if (asked != "auto" && asked != "cuda" && !one_gpu) return asked;
  const std::vector<std::string> all = gather_strings(comm, join(usable_gpus(), " "));
  const size_t without = size_t(std::count(all.begin(), all.end(), ""));
  if (asked == "auto" && without == all.size()) return "cpu";
  const size_t first = size_t(std::find(all.begin(), all.end(), "") - all.begin());
  if (without > 0 && without < all.size())
    fail(str("--device ", asked), str("rank ", first, " finds no GPU, others do"), "a GPU for each rank, or the CPU for all",
         "--device cpu, or run tessera env where rank " + str(first) + " is");
  const Node node = node_of(comm, all);
  if (one_gpu && node.gpus.size() > 1)
    fail(str("--device ", asked), str("one GPU for ", node.gpus.size(), " ranks of a machine"), "cuda: each rank takes its own",
         "write --device cuda");
  if (without > 0 || one_gpu) return asked;  // the backend says why there is none
  const int mine = assign_gpus(node.gpus)[node.mine];
  if (mine < 0) too_few(asked, node);
  return str("cuda:", mine);
}

}  // namespace tessera
