// A run that was stopped, by a signal or by the death of a rank, goes on as if nothing had happened.
#include <signal.h>

#include <filesystem>

#include "core/text.h"
#include "io/file.h"
#include "tiny.h"

namespace tessera {
namespace {

class Resume : public Tiny {
 protected:
  Words long_training(const std::string& output, int micro_batches, const Words& more = {}) const {
    return training(output,
                    Words{"--train_type", "qlora", "--max_steps", "120", "--gradient_accumulation_steps", str(micro_batches)} + more);
  }
  void run_whole() const { well(run(tessera(long_training("whole", 4)))); }
  void copy(const std::string& from, const std::string& to) const {
    std::filesystem::copy(path(from), path(to), std::filesystem::copy_options::recursive);
  }
  const Words saving_ = {"--save_steps", "20"}, resuming_ = {"--save_steps", "20", "--resume_from_checkpoint", "true"};
};

TEST_F(Resume, AfterTheDeathOfARank) {
  run_whole();
  Program program(tessera(Words{"launch", "--num_processes", "2"} + long_training("killed", 2, saving_)));
  wait_for(program, "killed/checkpoint-40");
  kill(rank_with(path("killed"), 1), SIGKILL);
  EXPECT_NE(program.wait(20).code, 0);
  EXPECT_FALSE(file_exists(path("killed/adapter_model.safetensors")));
  copy("killed", "alone");

  const Ended resumed = well(run(mpiexec(2, long_training("killed", 2, resuming_))));
  expect_contains(resumed.err, "resumed  ");
  EXPECT_EQ(outcome("killed"), outcome("whole"));
  well(run(tessera(long_training("alone", 4, resuming_))));
  EXPECT_EQ(outcome("alone"), outcome("whole")) << "two ranks, resumed by one";
}

// The command stays as it is; the accumulation steps follow from the checkpoint.
TEST_F(Resume, AutoOnAnotherNumberOfRanks) {
  well(run(tessera(long_training("whole", 6))));
  const Words more = saving_ + Words{"--fsdp_state_dict_type", "SHARDED_STATE_DICT", "--resume_from_checkpoint", "auto"};
  Program program(mpiexec(3, long_training("killed", 2, more)));
  wait_for(program, "killed/checkpoint-40");
  kill(rank_with(path("killed"), 1), SIGKILL);
  EXPECT_NE(program.wait(20).code, 0);
  EXPECT_FALSE(file_exists(path("killed/adapter_model.safetensors")));

  const Ended resumed = well(run(mpiexec(2, long_training("killed", 2, more))));
  expect_contains(resumed.err, "--gradient_accumulation_steps 3 keeps the 6 micro-batches of a step");
  EXPECT_EQ(outcome("killed"), outcome("whole"));
}

TEST_F(Resume, AfterSigintOfOneRank) {
  run_whole();
  Program program(tessera(long_training("stopped", 4, saving_)));
  wait_for(program, "stopped/checkpoint-20");
  program.send(SIGINT);
  const Ended stopped = program.wait();
  EXPECT_EQ(stopped.code, 75) << stopped.err;
  expect_contains(stopped.err, "--resume_from_checkpoint true continues");
  EXPECT_FALSE(file_exists(path("stopped/adapter_model.safetensors")));

  well(run(tessera(long_training("stopped", 4, resuming_))));
  EXPECT_EQ(outcome("stopped"), outcome("whole"));
}

// timeout and schedulers send a signal to the process and again to its group: that is one request.
TEST_F(Resume, ADoubledSignalIsOne) {
  Program program(tessera(long_training("doubled", 4, saving_)));
  wait_for(program, "doubled/checkpoint-20");
  program.send(SIGTERM);
  program.send(SIGTERM);
  EXPECT_EQ(program.wait().code, 75);
}

// A checkpoint is made although none was asked for. Hydra loses the exit codes of its ranks now and then when it has passed a signal on,
// also with a shell script as ranks: 0 instead of 75.
TEST_F(Resume, AfterSigintOfMpiexec) {
  run_whole();
  Program program(mpiexec(2, long_training("stopped", 2)));
  wait_for(program, "stopped/train.jsonl");
  program.send(SIGINT);
  const Ended stopped = program.wait();
  EXPECT_TRUE(stopped.code == 75 || stopped.code == 0) << stopped.code << "\n" << stopped.err;
  expect_contains(stopped.err, "--resume_from_checkpoint true continues");

  well(run(mpiexec(2, long_training("stopped", 2, {"--resume_from_checkpoint", "true"}))));
  EXPECT_EQ(outcome("stopped"), outcome("whole"));
}

}  // namespace
}  // namespace tessera
