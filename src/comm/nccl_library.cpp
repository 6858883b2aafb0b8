#include "comm/nccl_library.h"

#include <dlfcn.h>

#include <optional>

#include "core/text.h"

namespace tessera {
namespace {

constexpr int oldest = 2700;  // 2.7, the first with send and receive

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(::dlsym(library, name));
  return function != nullptr;
}

struct Loaded {
  std::optional<NcclLibrary> library;
  std::string why, version;
};

void* open_nccl(std::string& why) {
  for (const char* name : {"libnccl.so.2", "/usr/local/cuda/lib64/libnccl.so.2"}) {
    if (void* library = ::dlopen(name, RTLD_NOW | RTLD_LOCAL)) return library;
    if (why.empty()) why = ::dlerror();
  }
  return nullptr;
}

// Those that may be absent go last.
void find_driver(NcclLibrary& l) {
  void* const driver = ::dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!driver) return;
  const bool all = find(driver, "cuCtxGetCurrent", l.current_context) && find(driver, "cuCtxSetCurrent", l.set_context) &&
                   find(driver, "cuStreamQuery", l.stream_query);
  if (!all) l.stream_query = nullptr;
}

// Libraries are never closed: their threads may outlive every group.
Loaded load() {
  Loaded loaded;
  void* const so = open_nccl(loaded.why);
  if (!so) return loaded;
  loaded.why.clear();
  NcclLibrary l;
  const bool all = find(so, "ncclGetVersion", l.get_version) && find(so, "ncclGetErrorString", l.error_string) &&
                   find(so, "ncclGetUniqueId", l.make_id) && find(so, "ncclCommInitRank", l.init_rank) &&
                   find(so, "ncclCommDestroy", l.destroy) && find(so, "ncclCommAbort", l.abort) &&
                   find(so, "ncclCommGetAsyncError", l.async_error) && find(so, "ncclGroupStart", l.group_start) &&
                   find(so, "ncclGroupEnd", l.group_end) && find(so, "ncclAllGather", l.all_gather) &&
                   find(so, "ncclBroadcast", l.broadcast) && find(so, "ncclSend", l.send) && find(so, "ncclRecv", l.receive);
  int version = 0;
  if (!l.get_version || l.get_version(&version) != NcclLibrary::success) {
    loaded.why = "libnccl.so.2 does not tell its version";
    return loaded;
  }
  loaded.version = nccl_version_text(version);
  if (!all || version < oldest) {
    loaded.why = str("libnccl.so.2 is of version ", loaded.version, ", older than ", nccl_version_text(oldest));
    return loaded;
  }
  find(so, "ncclGetLastError", l.last_error);
  find_driver(l);
  loaded.library = l;
  return loaded;
}

const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

}  // namespace

std::string nccl_version_text(int code) {
  const int major = code < 10000 ? code / 1000 : code / 10000, rest = code < 10000 ? code % 1000 : code % 10000;
  return str(major, '.', rest / 100, '.', rest % 100);
}

const NcclLibrary* find_nccl(std::string& why) {
  why = loaded().why;
  return loaded().library ? &*loaded().library : nullptr;
}

std::string nccl_version() { return loaded().library ? loaded().version : "not found: " + loaded().why; }

}  // namespace tessera
