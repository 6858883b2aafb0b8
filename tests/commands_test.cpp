// Each command of the program on a tiny model: what it prints and what it leaves.
#include <cmath>

#include "core/text.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "tiny.h"

namespace tessera {
namespace {

using Commands = Tiny;

TEST_F(Commands, TrainingLeavesTheBaseAlone) {
  const std::string base = trained_model();
  const auto before = files_of(base);
  EXPECT_TRUE(before.count(base + "/model.safetensors") && before.count(base + "/tokenizer.json"));
  for (const char* type : {"lora", "qlora", "full"})
    well(run(tessera({"train", "--model", base, "--dataset", path("text.jsonl"), "--train_type", type, "--max_steps", "2", "--save_steps",
                      "1", "--threads", "1", "--output_dir", path(type)})));
  EXPECT_EQ(files_of(base), before);
}

TEST_F(Commands, AdapterFolderIsPeftS) {
  well(run(tessera(training("out", {"--lora_target_modules", "q_proj,down_proj", "--lora_alpha", "6"}))));
  const std::string config = read_file(path("out/adapter_config.json"));
  EXPECT_EQ(json_at(config, "/peft_type"), "\"LORA\"");
  EXPECT_EQ(json_at(config, "/task_type"), "\"CAUSAL_LM\"");
  EXPECT_EQ(json_at(config, "/r"), "3");
  EXPECT_EQ(std::stod(json_at(config, "/lora_alpha")), 6);
  EXPECT_EQ(json_at(config, "/target_modules"), R"(["q_proj","down_proj"])");
  std::vector<std::string> names, expected;
  const TensorFiles adapter = TensorFiles::open(path("out/adapter_model.safetensors"));
  for (const auto& [name, tensor] : adapter.all()) names.push_back(str(name, " ", tensor.dtype_name, " ", tensor.shape_text()));
  for (int layer = 0; layer < 3; ++layer)
    for (const char* rest : {"mlp.down_proj.lora_A.weight F32 [3, 80]", "mlp.down_proj.lora_B.weight F32 [32, 3]",
                             "self_attn.q_proj.lora_A.weight F32 [3, 32]", "self_attn.q_proj.lora_B.weight F32 [32, 3]"})
      expected.push_back(str("base_model.model.model.layers.", layer, ".", rest));
  EXPECT_EQ(names, expected);
}

// The programs that tests start see no GPU (tests/program.cpp).
TEST_F(Commands, OffloadIsSpokenOfWhereAutoFindsNoGpu) {
  const Ended ended = run(tessera(training("offloaded", {"--use_cpu_offload", "true", "--max_steps", "1"})));
  well(ended);
  expect_contains(ended.out + ended.err, "offload  has no effect on a CPU");
}

TEST_F(Commands, ConfigFileIsTheSameAsFlags) {
  well(run(tessera(training("flags", {"--train_type", "lora", "--lora_alpha", "6", "--seed", "7"}))));
  std::string yaml = "lora:\n  rank: 3\n  alpha: 6\n  dropout: 0.1\ntrain_type: lora\nseed: 99\ninit: random\nprecision: fp32\n";
  yaml += str("model: ", path("model"), "\ndataset: \"", path("rows.jsonl"), "\"\nper_device_train_batch_size: 2\nmax_steps: 4\n");
  yaml += str("learning-rate: 1e-2\nlogging_steps: 100\nthreads: 1\noutput_dir: ", path("file"), "\n");
  write_file_atomic(path("run.yaml"), yaml);
  well(run(tessera({"train", "--config", path("run.yaml"), "--seed", "7"})));
  EXPECT_EQ(outcome("file"), outcome("flags"));
  const std::string record = replace_all(read_file(path("file/tessera.yaml")), path("file"), path("flags"));
  EXPECT_EQ(record, read_file(path("flags/tessera.yaml")));

  well(run(tessera({"train", path("flags/tessera.yaml"), "--output_dir", path("again")})));
  EXPECT_EQ(outcome("again"), outcome("flags")) << "the record of a run starts it again";
}

TEST_F(Commands, Generate) {
  const std::string model = trained_model();
  const auto text = [&](const Words& more) {
    return well(run(tessera(Words{"generate", "--model", model, "--prompt", "the cat is", "--max_new_tokens", "20"} + more))).out;
  };
  const std::string greedy = text({});
  EXPECT_GT(greedy.size(), 5u);
  EXPECT_EQ(text({}), greedy);
  EXPECT_EQ(text({"--threads", "1"}), greedy);
  const std::string drawn = text({"--temperature", "2", "--seed", "3"});
  EXPECT_EQ(text({"--temperature", "2", "--seed", "3"}), drawn);
  EXPECT_NE(text({"--temperature", "2", "--seed", "4"}), drawn);

  well(run(tessera({"train", "--model", model, "--dataset", path("rows.jsonl"), "--max_steps", "10", "--lr", "3e-2", "--threads", "1",
                    "--save_steps", "5", "--output_dir", path("adapter")})));
  const std::string adapted = text({"--adapter", path("adapter")});
  EXPECT_EQ(text({"--adapter", path("adapter")}), adapted);
  EXPECT_NE(adapted, greedy);
  EXPECT_EQ(text({"--adapter", path("adapter/checkpoint-10")}), adapted);
}

TEST_F(Commands, Eval) {
  const std::string model = trained_model();
  const Words eval = {"eval", "--model", model, "--dataset", path("text.jsonl"), "--batch_size", "2", "--threads", "1"};
  const std::string json = well(run(tessera(eval + Words{"--json"}))).out;
  EXPECT_EQ(json_at(json, "/rows"), "18");
  const double loss = std::stod(json_at(json, "/loss"));
  EXPECT_LT(loss, 2) << "ln 64 = 4.16 for a model that knows nothing";
  EXPECT_NEAR(std::stod(json_at(json, "/perplexity")), std::exp(loss), 1e-9);
  EXPECT_EQ(well(run(mpiexec(2, eval + Words{"--json"}))).out, json);
  EXPECT_EQ(well(run(tessera(Words{"launch", "--num_processes", "3"} + eval + Words{"--json"}))).out, json);
  expect_contains(well(run(tessera(eval))).out, str("loss ", fixed(loss, 6)));
  const std::string other = well(run(tessera(eval + Words{"--quant_format", "nf4", "--json"}))).out;
  EXPECT_NE(json_at(other, "/loss"), json_at(json, "/loss"));
}

// The loss after training, by train itself and by eval with the adapter that it wrote.
TEST_F(Commands, EvalOfTrainIsEval) {
  const std::string model = trained_model();
  well(run(tessera({"train", "--model", model, "--dataset", path("text.jsonl"), "--eval_dataset", path("text.jsonl"), "--max_steps", "3",
                    "--threads", "1", "--output_dir", path("out")})));
  const auto lines = split(trim(read_file(path("out/train.jsonl"))), '\n');
  ASSERT_EQ(lines.size(), 4u);
  const Ended eval =
      well(run(tessera({"eval", "--model", model, "--adapter", path("out"), "--dataset", path("text.jsonl"), "--threads", "1", "--json"})));
  EXPECT_EQ(json_at(eval.out, "/loss"), json_at(lines[3], "/eval_loss"));
}

TEST_F(Commands, Inspect) {
  const Words inspect = {"inspect", "--model", path("model"), "--dataset", path("text.jsonl"), "--rows", "2"};
  const std::string text = well(run(tessera(inspect))).out;
  expect_contains(text, "row 0: 19 tokens, 19 learned\n[[<s> the cat is in the barn.");
  expect_contains(text, "\nrow 1: ");
  EXPECT_EQ(text.find("row 2"), std::string::npos);
  const auto lines = split(trim(well(run(tessera(inspect + Words{"--json"}))).out), '\n');
  ASSERT_EQ(lines.size(), 2u);
  for (const auto& line : lines) {
    EXPECT_EQ(json_numbers(line, "/ids").size(), json_numbers(line, "/labels").size());
    EXPECT_EQ(json_numbers(line, "/ids")[0], 1);
  }
}

TEST_F(Commands, Tokenize) {
  const Words tokenize = {"tokenize", "--model", path("model")};
  expect_contains(well(run(tessera(tokenize), "cab\n")).out, "cab\n  4 tokens  1:<s>  32:▁c  4:a  5:b\n");
  const Ended file = well(run(tessera(tokenize + Words{"--file", path("text.jsonl"), "--json"})));
  const auto lines = split(trim(file.out), '\n');
  ASSERT_EQ(lines.size(), 18u);
  EXPECT_EQ(json_at(lines[0], "/decoded"), "\"<s> the cat is in the barn.\"");
  EXPECT_EQ(json_numbers(lines[0], "/ids").size(), json_numbers(lines[0], "/ids_plain").size() + 1);
}

TEST_F(Commands, EnvAndVersion) {
  const std::string version = trim(well(run(tessera({"--version"}))).out);
  EXPECT_TRUE(starts_with(version, "tessera ")) << version;
  const std::string text = well(run(tessera({"env"}))).out;
  expect_contains(text, "\ngpus         ");  // none, and why
  for (const char* name : {"commit ", "compiler ", "cpu ", "cores ", "memory ", "backend ", "ranks "}) expect_contains(text, name);
  EXPECT_EQ(json_at(well(run(tessera({"env", "--json"}))).out, "/tessera"), str('"', version.substr(8), '"'));
  expect_contains(well(run(mpiexec(2, {"env"}))).out, "2 ranks on 1 node");
}

TEST_F(Commands, Help) {
  const std::map<std::string, Words> flags = {
      {"train",
       {"model", "dataset", "train_type", "quant_format", "lora_rank", "batch_size", "lr", "precision", "sharding_strategy", "output_dir",
        "save_steps", "resume_from_checkpoint", "config", "world_size"}},
      {"generate", {"model", "adapter", "prompt", "max_new_tokens", "temperature", "top_k", "top_p", "seed"}},
      {"eval", {"model", "adapter", "dataset", "batch_size", "json"}},
      {"inspect", {"model", "dataset", "rows", "json"}},
      {"tokenize", {"model", "file", "dataset_text_field", "json"}},
      {"launch", {"num_processes", "mpiexec"}},
      {"env", {"json"}}};
  const std::string all = well(run(tessera({"--help"}))).out;
  for (const auto& [command, names] : flags) {
    expect_contains(all, str("\n  ", command, " "));
    const Ended help = well(run(tessera({command, "--help"})));
    EXPECT_EQ(help.err, "");
    expect_contains(help.out, str("usage: tessera ", command));
    for (const auto& name : names) expect_contains(help.out, str("\n  --", name, "\n"));
    EXPECT_EQ(help.out.find("allowed: ,"), std::string::npos) << command;
  }
}

TEST_F(Commands, LossFallsOnARealModelAndRealRows) {
  NEEDS_SHARED();
  well(run(tessera({"train", "--model", shared("models/stories260k"), "--dataset", shared("data/gsm8k_alpaca.json"), "--train_type",
                    "qlora", "--lr", "2e-3", "--batch_size", "8", "--context_length", "256", "--max_steps", "40", "--threads", "1",
                    "--output_dir", path("out")})));
  const auto lines = split(trim(read_file(path("out/train.jsonl"))), '\n');
  ASSERT_EQ(lines.size(), 40u);
  double last = 0;
  for (size_t i = 30; i < 40; ++i) last += std::stod(json_at(lines[i], "/loss")) / 10;
  EXPECT_LT(last, 0.7 * std::stod(json_at(lines[0], "/loss")));
}

}  // namespace
}  // namespace tessera
