// tessera consolidate: what comes out of sharded checkpoints is, to the byte, what the run itself writes; PyTorch's folders give their
// tensors.
#include "core/text.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "testing/golden.h"
#include "tiny.h"

namespace tessera {
namespace {

class Consolidate : public Tiny {
 protected:
  // The same 4 steps on two ranks, with a checkpoint at the end.
  void train_two_ranks(const std::string& output, const Words& more) const {
    well(run(mpiexec(2, training(output, Words{"--save_steps", "2"} + more))));
  }
  void expect_same_files(const std::string& folder, const std::string& expected, const Words& names) const {
    for (const std::string& name : names)
      EXPECT_EQ(sha256_file(path(folder + "/" + name)), sha256_file(path(expected + "/" + name))) << name;
  }
};

const Words sharded = {"--fsdp_state_dict_type", "SHARDED_STATE_DICT"}, whole = {"--fsdp_state_dict_type", "FULL_STATE_DICT"};

TEST_F(Consolidate, ShardedAdapter) {
  train_two_ranks("sharded", sharded);
  train_two_ranks("whole", whole);
  const Ended made = well(run(tessera({"consolidate", path("sharded"), path("adapter")})));
  expect_contains(made.out, path("sharded/checkpoint-4"));
  expect_same_files("adapter", "whole", {"adapter_config.json", "adapter_model.safetensors"});
  well(run(tessera({"consolidate", path("whole/checkpoint-4"), path("again")})));
  expect_same_files("again", "whole", {"adapter_config.json", "adapter_model.safetensors"});
}

TEST_F(Consolidate, ShardedModel) {
  train_two_ranks("sharded", Words{"--train_type", "full", "--precision", "bf16"} + sharded);
  well(run(tessera({"consolidate", path("sharded/checkpoint-4"), path("out")})));
  expect_same_files("out", "sharded", {"config.json", "model.safetensors", "tokenizer.json"});
  well(run(tessera({"consolidate", path("sharded"), path("masters"), "--dtype", "fp32"})));
  EXPECT_EQ(json_at(read_file(path("masters/config.json")), "/torch_dtype"), "\"float32\"");
  well(run(tessera({"eval", "--model", path("masters"), "--dataset", path("rows.jsonl"), "--threads", "1"})));
}

TEST_F(Consolidate, DamagedShardIsNamed) {
  train_two_ranks("sharded", sharded);
  const std::string shard = path("sharded/checkpoint-4/shard-00002-of-00002.safetensors");
  std::string bytes = read_file(shard);
  bytes.back() ^= 1;
  write_file_atomic(shard, bytes);
  const Ended refused = run(tessera({"consolidate", path("sharded"), path("adapter")}));
  EXPECT_EQ(refused.code, 1);
  expect_contains(refused.err, shard);
  EXPECT_FALSE(folder_exists(path("adapter")));
  well(run(tessera({"consolidate", path("sharded/checkpoint-2"), path("adapter")})));
}

// An adapter that accelerate saved, sharded, on the model it was trained on.
TEST_F(Consolidate, AdapterOfPyTorch) {
  NEEDS_SHARED();
  const std::string from = shared("golden/train/checkpoints/lora_fsdp2_sharded"), model = shared("models/stories260k");
  const Ended refused = run(tessera({"consolidate", from, path("adapter")}));
  EXPECT_EQ(refused.code, 1);
  expect_contains(refused.err, "--adapter_config");
  write_file_atomic(path("adapter_config.json"),
                    R"({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]})");
  well(run(tessera({"consolidate", from, path("adapter"), "--adapter_config", path("adapter_config.json")})));
  well(run(tessera({"eval", "--model", model, "--adapter", path("adapter"), "--dataset", path("text.jsonl"), "--threads", "1"})));
}

}  // namespace
}  // namespace tessera
