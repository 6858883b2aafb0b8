// The exact command lines of the documents the program must understand, from ../shared.
#include "cli/upstream.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/config.h"
#include "core/error.h"
#include "core/text.h"
#include "testing/golden.h"

namespace tessera {
namespace {

std::string error_of(const Arguments& args) {
  try {
    parse_train(args);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// The words after "python train.py" of each command of fsdp_qlora's README; comments and line ends are dropped.
std::vector<Arguments> readme_lines() {
  std::vector<Arguments> lines;
  bool inside = false;
  for (const auto& line : split(shared_text("spec/fsdp_qlora_readme.md"), '\n')) {
    if (starts_with(line, "python train.py")) lines.emplace_back();
    inside = starts_with(line, "python train.py") || (inside && starts_with(line, "--"));
    if (!inside || starts_with(line, "python")) continue;
    for (const auto& word : split(line.substr(0, line.find('#')), ' '))
      if (!word.empty() && word != "\\") lines.back().push_back(word);
  }
  return lines;
}

void replace_value(Arguments& args, const std::string& flag, const std::string& value) {
  for (size_t i = 0; i + 1 < args.size(); ++i)
    if (args[i] == flag) args[i + 1] = value;
}

TEST(CommandLines, OfFsdpQloraAreTakenOrRefusedByTheRightName) {
  NEEDS_SHARED();
  const auto lines = readme_lines();
  const std::vector<std::vector<std::string>> refused = {
      {"no error"},                                                    // 70B on two cards
      {"--backend mps", "--precision fp16"},                           // Apple
      {"--log_to wandb"},                                              // full fine-tuning
      {},                                                              // linear schedule (no model named)
      {},                                                              // cosine schedule
      {"--log_to wandb"},                                              // logging
      {"--precision bf16_buffers_autocast"},                           // 70B, bitsandbytes
      {"--precision bf16_buffers_autocast", "--train_type hqq_lora"},  // 70B, HQQ
  };
  ASSERT_EQ(lines.size(), refused.size());
  for (size_t i = 0; i < lines.size(); ++i) {
    const std::string text = error_of(lines[i]);
    if (refused[i].empty()) {
      EXPECT_TRUE(has(text, "--model is missing") || has(text, "--cosine_min_lr_ratio 0.1") || has(text, "--cosine_min_lr_ratio: 0.1"))
          << text;
      continue;
    }
    for (const auto& words : refused[i])
      EXPECT_TRUE(words == "no error" ? text.empty() : has(text, words) && has(text, "not yet")) << i << ": " << text;
  }
}

TEST(CommandLines, OfFsdpQloraResolveOnceTheRefusedValuesAreReplaced) {
  NEEDS_SHARED();
  auto lines = readme_lines();
  const TrainConfig qlora = parse_train(lines[0]).config;
  EXPECT_EQ(qlora.model, "meta-llama/Llama-2-70b-hf");
  EXPECT_EQ(qlora.batch_size, 2);
  EXPECT_EQ(qlora.context_length, 512);
  EXPECT_EQ(qlora.train_type, "qlora");
  EXPECT_TRUE(qlora.use_cpu_offload);
  EXPECT_EQ(qlora.dataset, "alpaca");
  EXPECT_EQ(qlora.lr, 1e-5);

  replace_value(lines[2], "--log_to", "stdout");
  const TrainArguments full = parse_train(lines[2]);
  EXPECT_EQ(full.world_size, 2);
  EXPECT_EQ(full.config.train_type, "full");
  EXPECT_EQ(full.config.gradient_accumulation_steps, 4);
  EXPECT_EQ(full.config.batch_size, 8);

  replace_value(lines[6], "--precision", "bf16");
  EXPECT_EQ(parse_train(lines[6]).config.train_type, "custom_qlora");

  Arguments cosine = lines[4];
  cosine.insert(cosine.end(), {"--model_name", "m"});
  EXPECT_EQ(parse_train(cosine).config.warmup_steps, 1000);
}

// The lines of PEFT's guide; `exact_line` is what the libraries of 2024 make of them.
TEST(CommandLines, OfPeftResolveAsTheLibrariesDo) {
  NEEDS_SHARED();
  const auto golden = nlohmann::ordered_json::parse(shared_text("golden/train/flags/peft_fsdp.2024.json"));
  for (const auto& line : golden["lines"]) {
    const auto args = line["arguments"].get<Arguments>();
    const std::string text = error_of(args);
    for (const char* words : {"--chat_template_format chatml", "--splits train,test", "--push_to_hub true", "--packing True"})
      EXPECT_TRUE(has(text, words)) << words << " is not in " << text;

    Arguments built;
    for (size_t i = 0; i < args.size(); ++i) {
      const bool dropped = has("--chat_template_format --splits --evaluation_strategy --packing", args[i]);
      if (dropped)
        ++i;
      else if (args[i] != "--push_to_hub")
        built.push_back(args[i]);
    }
    const TrainConfig c = parse_train(built).config;
    const auto &model = line["exact_line"]["model"], &data = line["exact_line"]["data"], &training = line["exact_line"]["training"];
    EXPECT_EQ(c.model, model["model_name_or_path"]);
    EXPECT_EQ(c.lora_rank, model["lora_r"]);
    EXPECT_EQ(c.lora_alpha, model["lora_alpha"]);
    EXPECT_EQ(c.lora_dropout, model["lora_dropout"]);
    EXPECT_EQ(c.lora_target_modules, std::vector<std::string>{model["lora_target_modules"]});
    EXPECT_EQ(c.train_type == "qlora", model["use_4bit_quantization"]);
    EXPECT_EQ(c.train_type != "full", model["use_peft_lora"]);
    EXPECT_EQ(c.double_quant, model["use_nested_quant"]);
    EXPECT_EQ(c.quant_format, model["bnb_4bit_quant_type"]);
    EXPECT_EQ(c.dataset, data["dataset_name"]);
    EXPECT_EQ(c.dataset_text_field, data["dataset_text_field"]);
    EXPECT_EQ(c.context_length, data["max_seq_length"]);
    EXPECT_EQ(c.seed, training["seed"]);
    EXPECT_EQ(c.output_dir, training["output_dir"]);
    EXPECT_EQ(c.num_epochs, training["num_train_epochs"]);
    EXPECT_EQ(c.max_steps, training["max_steps"]);
    EXPECT_EQ(c.batch_size, training["per_device_train_batch_size"]);
    EXPECT_EQ(c.gradient_accumulation_steps, training["gradient_accumulation_steps"]);
    EXPECT_EQ(c.gradient_checkpointing, training["gradient_checkpointing"] ? "true" : "false");
    EXPECT_EQ(c.lr, training["learning_rate"]);
    EXPECT_EQ(c.weight_decay, training["weight_decay"]);
    EXPECT_EQ(c.adam_beta1, training["adam_beta1"]);
    EXPECT_EQ(c.adam_beta2, training["adam_beta2"]);
    EXPECT_EQ(c.adam_epsilon, training["adam_epsilon"]);
    EXPECT_EQ(c.max_grad_norm, training["max_grad_norm"]);
    EXPECT_EQ(c.lr_scheduler, training["lr_scheduler_type"]);
    EXPECT_EQ(c.warmup_ratio, training["warmup_ratio"]);
    EXPECT_EQ(c.precision == "bf16", training["bf16"]);
    EXPECT_EQ(c.logging_steps, training["logging_steps"]);
    EXPECT_EQ(c.save_steps, training["save_steps"]);
    EXPECT_EQ(c.save_strategy, "epoch");
  }
}

// Keyword arguments of SFTConfig, LoraConfig and BitsAndBytesConfig, written as flags.
TEST(CommandLines, OfTheLlama31Script) {
  NEEDS_SHARED();
  const auto golden = nlohmann::ordered_json::parse(shared_text("golden/train/flags/llama31_70b_fsdp.current.json"));
  Arguments args = {"--model_name_or_path", "meta-llama/Meta-Llama-3.1-70B", "--dataset", "train.jsonl", "--eval_dataset", "test.jsonl"};
  for (const auto& call : golden["calls"]) {
    for (const auto& [key, value] : call["keywords"].items()) {
      const std::string name = key == "r" ? "lora_r" : key;
      if (has(str(join(args, " "), " "), str("--", name, " "))) continue;
      args.push_back("--" + name);
      if (value.is_array())
        for (const auto& entry : value) args.push_back(entry);
      else
        args.push_back(value.is_string() ? value.get<std::string>() : value.dump());
    }
  }
  const TrainConfig c = parse_train(args).config;
  EXPECT_EQ(c.train_type, "qlora");
  EXPECT_TRUE(c.double_quant);
  EXPECT_EQ(c.lora_rank, 16);
  EXPECT_EQ(c.lora_alpha, 16);
  EXPECT_EQ(c.lora_target_modules.size(), 7u);
  EXPECT_EQ(c.lr, 1e-4);
  EXPECT_EQ(c.lr_scheduler, "linear");
  EXPECT_EQ(c.warmup_ratio, 0.1);
  EXPECT_EQ(c.max_steps, 50);
  EXPECT_EQ(c.eval_steps, 10);
  EXPECT_EQ(c.gradient_accumulation_steps, 16);
  EXPECT_EQ(c.context_length, 512);
}

TEST(UpstreamFlags, EveryRowHasAWayToBeAnswered) {
  for (const auto& flag : upstream_flags()) {
    TrainConfig c;
    FieldList fields = train_fields(c);
    const Given other{std::string(flag.name), str("--", flag.name), {"something-else"}};
    if (flag.note.empty())
      EXPECT_THROW(judge_upstream({other}, fields), Error) << flag.name;
    else
      EXPECT_EQ(judge_upstream({other}, fields).size(), 1u) << flag.name;
    if (flag.same.empty()) continue;
    for (const auto& value : split(flag.same, '|'))
      EXPECT_TRUE(judge_upstream({{other.name, other.where, {value}}}, fields).empty()) << flag.name;
  }
}

}  // namespace
}  // namespace tessera
