// The functions of NCCL, and three of the CUDA driver, that NcclComm uses: found in the libraries of the machine when they are first
// needed, so that one program also starts where there are none. The few types are those of nccl.h; a test may give other functions.
// Inside comm only, but for nccl_version().
#pragma once
#include <cstddef>
#include <string>

namespace tessera {

struct NcclLibrary {
  using Group = void*;   // ncclComm_t
  using Stream = void*;  // cudaStream_t
  struct Id {            // ncclUniqueId
    char bytes[128];
  };
  enum Result : int { success = 0, in_progress = 7 };  // ncclResult_t; all others are errors
  enum Type : int { uint8 = 1, float32 = 7 };          // ncclDataType_t

  int (*get_version)(int*) = nullptr;
  const char* (*error_string)(int) = nullptr;
  const char* (*last_error)(Group) = nullptr;  // since 2.13: may be absent
  int (*make_id)(Id*) = nullptr;
  int (*init_rank)(Group*, int ranks, Id, int rank) = nullptr;
  int (*destroy)(Group) = nullptr;
  int (*abort)(Group) = nullptr;
  int (*async_error)(Group, int*) = nullptr;
  int (*group_start)() = nullptr;
  int (*group_end)() = nullptr;
  int (*all_gather)(const void* mine, void* all, size_t count, int type, Group, Stream) = nullptr;
  int (*broadcast)(const void* from, void* to, size_t count, int type, int root, Group, Stream) = nullptr;
  int (*send)(const void*, size_t count, int type, int to, Group, Stream) = nullptr;
  int (*receive)(void*, size_t count, int type, int from, Group, Stream) = nullptr;

  // Of the driver; may be absent: then an exchange that stands still on the GPU although all ranks are in it goes unnoticed.
  int (*current_context)(void**) = nullptr;
  int (*set_context)(void*) = nullptr;
  int (*stream_query)(Stream) = nullptr;  // CUresult: 0 is idle, 600 is busy

  size_t round_floats = size_t(4) << 20;  // of a part that one round of a sum moves; two rounds are in flight
  double seconds_to_end = 20;  // after a lost group the process ends, whatever its threads wait for; 0: never, for ranks that are threads
};

// Loaded once. Null when there is none that can be used; `why` says what is missing. From any thread.
const NcclLibrary* find_nccl(std::string& why);
std::string nccl_version_text(int code);  // 22809: "2.28.9"
std::string nccl_version();               // of the library that is found, or "not found: ..."

}  // namespace tessera
