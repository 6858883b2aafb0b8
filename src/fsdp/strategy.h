// Sharding strategies as rows: two switches each. Names of fsdp_qlora and of accelerate (FULL_SHARD, ...) mean the same rows.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

struct Strategy {
  std::string_view name;            // "full_shard"
  bool shard_over_world = true;     // false: every rank holds all trainable values (ddp)
  bool keep_after_forward = false;  // true: gathered values stay from forward to backward
};

// full_shard, shard_grad_op, ddp (also FULL_SHARD, SHARD_GRAD_OP, NO_SHARD, 1, 2, 3). hybrid_* are refused: "not yet".
const Strategy& find_strategy(std::string_view name);
std::vector<std::string> strategy_names();

}  // namespace tessera
