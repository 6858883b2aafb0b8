// Tokens of the user's accounts, wherever they are given: in the environment, on the command line, in a configuration file. None of them is
// in anything that the program prints or writes.
#include <cstdlib>
#include <filesystem>

#include "core/text.h"
#include "io/file.h"
#include "tiny.h"

namespace tessera {
namespace {

class Secrets : public Tiny {
 protected:
  Secrets() {
    setenv("HF_TOKEN", token.c_str(), 1);
    setenv("WANDB_API_KEY", token.c_str(), 1);
  }
  ~Secrets() override {
    unsetenv("HF_TOKEN");
    unsetenv("WANDB_API_KEY");
  }
  void expect_unsaid(const Ended& ended) const {
    EXPECT_EQ(ended.out.find(token), std::string::npos) << ended.out;
    EXPECT_EQ(ended.err.find(token), std::string::npos) << ended.err;
  }
  // Every file below the folder, names included.
  void expect_unwritten(const std::string& folder) const {
    int files = 0;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
      EXPECT_EQ(entry.path().string().find(token), std::string::npos) << entry.path();
      if (!entry.is_regular_file()) continue;
      EXPECT_EQ(read_file(entry.path().string()).find(token), std::string::npos) << entry.path();
      ++files;
    }
    EXPECT_GT(files, 4);
  }

  const std::string token = "hf_" + std::string("aBcDeFgHiJkLmNoPqRsTuVwXyZ01234567");
};

TEST_F(Secrets, AreInNoFileAndNoLine) {
  const Words given = {"--hub_token", token, "--push_to_hub_token=" + token, "--max_steps", "4", "--save_steps", "2", "--profile", "true"};
  const Ended one = well(run(tessera(training("out", given))));
  expect_unsaid(one);
  expect_unwritten(path("out"));
  const Ended two = well(run(tessera({"launch", "--num_processes", "2"}) + training("two", given)));
  expect_unsaid(two);
  expect_unwritten(path("two"));
  write_file_atomic(path("run.yaml"), "hub_token: " + token + "\nmax_steps: 2\n");
  expect_unsaid(well(run(tessera(training("file", {"--config", path("run.yaml")})))));
  expect_unwritten(path("file"));
  expect_unsaid(well(run(tessera({"env"}))));
}

TEST_F(Secrets, AreMaskedInErrors) {
  for (const Words& words :
       {Words{"--hf_token", token}, Words{token}, Words{"--env", "HF_TOKEN=" + token}, Words{"--lr", token},
        Words{"--model", "https://user:" + token + "@huggingface.co/m"}, Words{"--output_dir", path(token)},
        Words{"--dataset", path(token + ".jsonl")}, Words{"--config", path(token + ".yaml")}, Words{"--lora_target_modules", token}}) {
    const Ended ended = run(tessera(training("refused", words)));
    EXPECT_NE(ended.code, 0) << join(words, " ");
    expect_unsaid(ended);
    expect_contains(ended.err, "do this");
  }
  write_file_atomic(path("key.yaml"), "model: m\n" + token + ": 1\n");
  expect_unsaid(run(tessera(training("refused", {"--config", path("key.yaml")}))));
  EXPECT_FALSE(folder_exists(path("refused")));
}

}  // namespace
}  // namespace tessera
