#include "cli/launch.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "core/error.h"

namespace tessera {
namespace {

std::string error_of(const Arguments& args) {
  try {
    parse_launch(args);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST(Launch, PassesTheCommandOn) {
  const Launch l = parse_launch({"--num_processes", "4", "--mpiexec", "/opt/mpiexec", "train", "run.yaml", "--lr", "1e-4"});
  EXPECT_EQ(l.ranks, 4);
  EXPECT_EQ(l.mpiexec, "/opt/mpiexec");
  EXPECT_EQ(l.command, (Arguments{"train", "run.yaml", "--lr", "1e-4"}));
  EXPECT_TRUE(l.notices.empty());
  EXPECT_EQ(l.max_restarts, 0);
  EXPECT_EQ(parse_launch({"--num_processes", "2", "--max_restarts", "3", "train"}).max_restarts, 3);
}

TEST(Launch, UnderstandsAccelerate) {
  const Launch l = parse_launch({"--num-processes=2",
                                 "--num_machines",
                                 "1",
                                 "--machine_rank",
                                 "0",
                                 "--mixed_precision",
                                 "bf16",
                                 "--use_fsdp",
                                 "--rdzv_backend",
                                 "static",
                                 "--fsdp_sharding_strategy",
                                 "SHARD_GRAD_OP",
                                 "--fsdp_offload_params",
                                 "true",
                                 "--num_cpu_threads_per_process",
                                 "1",
                                 "--use_cpu",
                                 "train",
                                 "--model",
                                 "m"});
  EXPECT_EQ(l.ranks, 2);
  EXPECT_EQ(l.command, (Arguments{"train", "--model", "m", "--threads=1", "--sharding_strategy=SHARD_GRAD_OP", "--device=cpu",
                                  "--use_cpu_offload=true"}));
  EXPECT_EQ(l.notices.size(), 2u);
}

TEST(Launch, RefusesByName) {
  EXPECT_TRUE(has(error_of({"train"}), "--num_processes is missing"));
  EXPECT_TRUE(has(error_of({"--num_processes", "2"}), "the command is missing"));
  EXPECT_TRUE(has(error_of({"--num_processes", "2", "inspect"}), "no command that runs on ranks"));
  EXPECT_TRUE(has(error_of({"--num_processes", "2", "--max_restarts", "1", "eval"}), "--max_restarts"));
  EXPECT_TRUE(has(error_of({"--num_processes", "0", "train"}), "--num_processes: \"0\""));
  EXPECT_TRUE(has(error_of({"--num_processes", "2", "--num_machines", "2", "train"}), "--num_machines 2: not yet built"));
  EXPECT_TRUE(has(error_of({"--num_processes", "2", "--fsdp_activation_checkpointing", "true", "train"}), "not yet built"));
  EXPECT_TRUE(has(error_of({"--num_procesess", "2", "train"}), "perhaps --num_processes"));
}

TEST(Launch, TakesOnlyTheLauncherOfMpich) {
  const std::string folder = testing::TempDir() + "tessera_launch_test/";
  std::filesystem::create_directories(folder);
  const std::string other = folder + "it's other", hydra = folder + "hydra launcher";
  std::ofstream(other) << "#!/bin/sh\necho mpirun '(Open MPI)' 4.1\n";
  std::ofstream(hydra) << "#!/bin/sh\necho HYDRA build details:\n";
  for (const auto& file : {other, hydra}) std::filesystem::permissions(file, std::filesystem::perms::owner_all);
  EXPECT_EQ(find_mpiexec(hydra), hydra);
  try {
    find_mpiexec(other);
    ADD_FAILURE() << "Open MPI was taken for MPICH";
  } catch (const Error& e) {
    EXPECT_TRUE(has(e.what(), "apt-get install mpich")) << e.what();
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace tessera
