#include "fsdp/strategy.h"

#include <algorithm>
#include <array>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr std::array rows = {
    Strategy{"full_shard", true, false},
    Strategy{"shard_grad_op", true, true},
    Strategy{"ddp", false, true},
};

struct Alias {
  std::string_view given, name;
};
// Numbers and names of accelerate's FSDP plugin and of torch's ShardingStrategy.
constexpr std::array aliases = {Alias{"1", "full_shard"}, Alias{"2", "shard_grad_op"}, Alias{"3", "ddp"}, Alias{"no_shard", "ddp"}};

}  // namespace

const Strategy& find_strategy(std::string_view given) {
  std::string name = lower(given);
  for (const Alias& a : aliases)
    if (name == a.given) name = a.name;
  for (const Strategy& row : rows)
    if (name == row.name) return row;
  const std::string where = "sharding strategy", allowed = join(strategy_names(), ", ");
  if (starts_with(name, "hybrid_") || name == "4" || name == "5")
    fail(where, str(given, " is not supported yet"), allowed, "use full_shard, which shards over all nodes");
  std::vector<std::string> known = strategy_names();
  for (const Alias& a : aliases) known.emplace_back(a.given);
  const std::string near = nearest(name, known);
  fail(where, str(given, " is not known"), allowed, near.empty() ? "use full_shard" : str("did you mean ", near, "?"));
}

std::vector<std::string> strategy_names() {
  std::vector<std::string> names;
  for (const Strategy& row : rows) names.emplace_back(row.name);
  return names;
}

}  // namespace tessera
