#include "fsdp/strategy.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace tessera {
namespace {

std::string message_for(std::string_view name) {
  try {
    find_strategy(name);
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(Strategy, Rows) {
  EXPECT_EQ(strategy_names(), (std::vector<std::string>{"full_shard", "shard_grad_op", "ddp"}));
  EXPECT_TRUE(find_strategy("full_shard").shard_over_world);
  EXPECT_FALSE(find_strategy("full_shard").keep_after_forward);
  EXPECT_TRUE(find_strategy("shard_grad_op").shard_over_world);
  EXPECT_TRUE(find_strategy("shard_grad_op").keep_after_forward);
  EXPECT_FALSE(find_strategy("ddp").shard_over_world);
}

TEST(Strategy, Aliases) {
  for (const char* name : {"FULL_SHARD", "1"}) EXPECT_EQ(&find_strategy(name), &find_strategy("full_shard")) << name;
  for (const char* name : {"SHARD_GRAD_OP", "2"}) EXPECT_EQ(&find_strategy(name), &find_strategy("shard_grad_op")) << name;
  for (const char* name : {"NO_SHARD", "DDP", "3"}) EXPECT_EQ(&find_strategy(name), &find_strategy("ddp")) << name;
}

TEST(Strategy, Refusals) {
  for (const char* name : {"hybrid_full_shard", "hybrid_shard_grad_op", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2", "4", "5"})
    EXPECT_NE(message_for(name).find(std::string(name) + " is not supported yet"), std::string::npos) << message_for(name);
  EXPECT_EQ(message_for("ful_shard"),
            "sharding strategy: ful_shard is not known\n  allowed: full_shard, shard_grad_op, ddp\n  do this: did you mean full_shard?");
  EXPECT_NE(message_for("tensor").find("tensor is not known"), std::string::npos);
}

}  // namespace
}  // namespace tessera
