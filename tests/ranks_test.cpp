// One rank, ranks started by launch, by mpiexec, by --world_size: the same rows in a step give the same bytes.
#include "core/text.h"
#include "tiny.h"

namespace tessera {
namespace {

struct Kind {
  const char *train_type, *strategy, *precision;
  const char* file() const { return std::string(train_type) == "full" ? "model.safetensors" : "adapter_model.safetensors"; }
};
void PrintTo(const Kind& k, std::ostream* out) { *out << k.train_type << "_" << k.strategy << "_" << k.precision; }

class Ranks : public Tiny, public testing::WithParamInterface<Kind> {
 protected:
  Words training_with(const std::string& output, int micro_batches) const {
    const Kind& k = GetParam();
    return training(output, {"--train_type", k.train_type, "--sharding_strategy", k.strategy, "--precision", k.precision,
                             "--gradient_accumulation_steps", str(micro_batches)});
  }
  std::string result(const std::string& output) const { return outcome(output, GetParam().file()); }
};

TEST_P(Ranks, AnyWayOfStartingThemGivesTheSameBytes) {
  well(run(tessera(training_with("one", 4))));
  well(run(tessera(Words{"launch", "--num_processes", "2"} + training_with("launched", 2))));
  well(run(mpiexec(4, training_with("mpiexec", 1))));
  well(run(tessera(training_with("world", 2) + Words{"--world_size", "2"})));
  const std::string one = result("one");
  EXPECT_EQ(split(one, '\n').size(), 6u) << "a hash, four steps, an empty end";
  EXPECT_EQ(result("launched"), one);
  EXPECT_EQ(result("mpiexec"), one);
  EXPECT_EQ(result("world"), one);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Ranks,
                         testing::Values(Kind{"lora", "full_shard", "fp32"}, Kind{"qlora", "shard_grad_op", "fp32"},
                                         Kind{"full", "ddp", "fp32"}, Kind{"full", "full_shard", "fp32"},
                                         Kind{"qlora", "full_shard", "bf16"}),
                         testing::PrintToStringParamName());

using RanksOfThree = Tiny;

TEST_F(RanksOfThree, TwelveMicroBatches) {
  const Words qlora = {"--train_type", "qlora", "--gradient_accumulation_steps"};
  well(run(tessera(training("one", qlora + Words{"12"}))));
  well(run(mpiexec(3, training("three", qlora + Words{"4"}))));
  EXPECT_EQ(outcome("three"), outcome("one"));
}

}  // namespace
}  // namespace tessera
