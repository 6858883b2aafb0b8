// The three dialects: whose defaults hold, what spellings become, and what is refused by name.
#include "cli/config.h"

#include <gtest/gtest.h>

#include <set>

#include "cli/upstream.h"
#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

// Words as a shell would cut them, without quotes.
Arguments words(const std::string& line) {
  Arguments out;
  for (const auto& word : split(line, ' '))
    if (!word.empty()) out.push_back(word);
  return out;
}

TrainArguments parse(const std::string& line) { return parse_train(words(line)); }
TrainConfig config(const std::string& line) { return parse(line).config; }

std::string error_of(const std::string& line) {
  try {
    parse(line);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

void expect_error(const std::string& line, const std::vector<std::string>& parts) {
  const std::string text = error_of(line);
  for (const auto& part : parts) EXPECT_NE(text.find(part), std::string::npos) << line << "\nlacks \"" << part << "\" in:\n" << text;
}

bool says(const TrainArguments& a, const std::string& part) {
  for (const auto& notice : a.notices)
    if (notice.find(part) != std::string::npos) return true;
  return false;
}

const std::vector<std::string> six = {"k_proj", "q_proj", "v_proj", "up_proj", "down_proj", "gate_proj"};

TEST(TrainConfig, TesseraColumnIsTheStruct) {
  TrainConfig expected;
  expected.model = "m", expected.dataset = "d.jsonl", expected.device = "auto";
  EXPECT_EQ(config("--model m --dataset d.jsonl"), expected);
  EXPECT_TRUE(parse("--model m --dataset d.jsonl").notices.empty());
}

TEST(TrainConfig, FsdpQloraColumn) {
  const TrainArguments a = parse("--model_name m");
  const TrainConfig& c = a.config;
  EXPECT_EQ(c.defaults, "fsdp_qlora");
  EXPECT_TRUE(says(a, "defaults of fsdp_qlora, as --model_name asks"));
  EXPECT_EQ(c.model, "m");
  EXPECT_EQ(c.dataset, "alpaca_sample");
  EXPECT_EQ(c.train_type, "qlora");
  EXPECT_EQ(c.lr, 1e-5);
  EXPECT_EQ(c.lora_rank, 64);
  EXPECT_EQ(c.lora_alpha, 16);
  EXPECT_EQ(c.lora_dropout, 0.1);
  EXPECT_EQ(c.lora_target_modules, six);
  EXPECT_EQ(c.adam_beta1, 0.9);
  EXPECT_EQ(c.adam_beta2, 0.95);
  EXPECT_EQ(c.adam_epsilon, 1e-5);
  EXPECT_EQ(c.weight_decay, 0.1);
  EXPECT_EQ(c.lr_scheduler, "constant");
  EXPECT_EQ(c.warmup_steps, -1);
  EXPECT_EQ(c.warmup_ratio, -1);
  EXPECT_EQ(c.max_grad_norm, 0);
  EXPECT_EQ(c.context_length, 512);
  EXPECT_EQ(c.batch_size, 1);
  EXPECT_EQ(c.num_epochs, 1);
  EXPECT_EQ(c.seed, 42u);
  EXPECT_EQ(c.precision, "bf16");
  EXPECT_TRUE(c.double_quant);
  EXPECT_EQ(c.gradient_checkpointing, "auto");
  EXPECT_EQ(c.sharding_strategy, "full_shard");
  EXPECT_TRUE(c.save_model);  // unlike upstream: a run that saves nothing loses its work
  EXPECT_EQ(c.output_dir, "output");
  EXPECT_EQ(c.dataset_samples, 512);
}

TEST(TrainConfig, TrlColumn) {
  const TrainConfig c = config("--model_name_or_path m --dataset_name d");
  EXPECT_EQ(c.defaults, "trl");
  EXPECT_EQ(c.dataset, "d");
  EXPECT_EQ(c.train_type, "full");
  EXPECT_EQ(c.lr, 2e-5);
  EXPECT_EQ(c.lr_scheduler, "linear");
  EXPECT_EQ(c.warmup_ratio, -1);
  EXPECT_EQ(c.adam_beta2, 0.999);
  EXPECT_EQ(c.adam_epsilon, 1e-8);
  EXPECT_EQ(c.weight_decay, 0);
  EXPECT_EQ(c.max_grad_norm, 1);
  EXPECT_EQ(c.num_epochs, 3);
  EXPECT_EQ(c.batch_size, 8);
  EXPECT_EQ(c.context_length, 1024);
  EXPECT_EQ(c.seed, 42u);
  EXPECT_EQ(c.precision, "bf16");
  EXPECT_EQ(c.lora_rank, 16);
  EXPECT_EQ(c.lora_alpha, 32);
  EXPECT_EQ(c.lora_dropout, 0.05);
  EXPECT_EQ(c.lora_target_modules, (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(c.logging_steps, 10);
  EXPECT_EQ(c.save_steps, 500);
  EXPECT_EQ(c.output_dir, "trainer_output");
  EXPECT_FALSE(c.double_quant);
  EXPECT_EQ(c.gradient_checkpointing, "auto");
  EXPECT_TRUE(c.save_model);
}

TEST(TrainConfig, DefaultsOverridesTheSpelling) {
  EXPECT_EQ(config("--model_name m --defaults tessera --dataset d").lr, 2e-4);
  EXPECT_EQ(config("--defaults trl --model m --dataset d").lr, 2e-5);
  EXPECT_EQ(config("--defaults fsdp_qlora --model m").lr, 1e-5);
  expect_error("--model m --dataset d --defaults hf", {"--defaults", "\"hf\"", "tessera, fsdp_qlora, trl"});
  expect_error("--model_name a --model_name_or_path b --dataset d", {"--model_name", "--model_name_or_path", "different defaults"});
}

TEST(TrainConfig, SpellingsOfFsdpQlora) {
  const TrainConfig c = config(
      "--model_name m --wd 0.2 --lr 1e-4 --use_gradient_checkpointing false --context_length 256 --num_epochs 2 --train_type custom_lora "
      "--dataset_samples 64 --lora_rank 8 --lora_target_modules default --log_every_n_steps 5 --sharding_strategy ddp --save_model True");
  EXPECT_EQ(c.weight_decay, 0.2);
  EXPECT_EQ(c.lr, 1e-4);
  EXPECT_EQ(c.gradient_checkpointing, "false");
  EXPECT_EQ(c.context_length, 256);
  EXPECT_EQ(c.num_epochs, 2);
  EXPECT_EQ(c.train_type, "custom_lora");
  EXPECT_EQ(c.dataset_samples, 64);
  EXPECT_EQ(c.lora_rank, 8);
  EXPECT_EQ(c.lora_target_modules, (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(c.logging_steps, 5);
  EXPECT_EQ(c.sharding_strategy, "ddp");
  EXPECT_TRUE(c.save_model);
  EXPECT_EQ(config("--model_name m --lora-target-modules all").lora_target_modules, six);
}

TEST(TrainConfig, SpellingsOfHuggingFace) {
  const TrainConfig c = config(
      "--model_name_or_path m --dataset_name d --learning_rate 1e-4 --per_device_train_batch_size 2 --max_seq_len 2048 "
      "--num_train_epochs 1 --lora_r 8 --warmup_ratio 0.1 --max_grad_norm 0.3 --optim adamw_torch_fused --bf16 True --use_peft "
      "--use_4bit_quantization True --use_nested_quant True --bnb_4bit_quant_type nf4 --lr_scheduler_type cosine --logging_steps 5 "
      "--save_steps 50 --adam_beta1 0.8 --fsdp_sharding_strategy SHARD_GRAD_OP --lora_target_modules q_proj k_proj");
  EXPECT_EQ(c.lr, 1e-4);
  EXPECT_EQ(c.batch_size, 2);
  EXPECT_EQ(c.context_length, 2048);
  EXPECT_EQ(c.num_epochs, 1);
  EXPECT_EQ(c.lora_rank, 8);
  EXPECT_EQ(c.warmup_ratio, 0.1);
  EXPECT_EQ(c.max_grad_norm, 0.3);
  EXPECT_EQ(c.optimizer, "adamw");
  EXPECT_EQ(c.precision, "bf16");
  EXPECT_EQ(c.train_type, "qlora");
  EXPECT_TRUE(c.double_quant);
  EXPECT_EQ(c.lr_scheduler, "cosine");
  EXPECT_EQ(c.logging_steps, 5);
  EXPECT_EQ(c.save_steps, 50);
  EXPECT_EQ(c.adam_beta1, 0.8);
  EXPECT_EQ(c.sharding_strategy, "shard_grad_op");
  EXPECT_EQ(c.lora_target_modules, (std::vector<std::string>{"q_proj", "k_proj"}));
  for (const char* name : {"max_length", "max_seq_length", "max_seq_len", "context_length"})
    EXPECT_EQ(config(str("--model m --dataset d --", name, " 77")).context_length, 77) << name;
  for (const char* name : {"use_nested_quant", "use_bnb_nested_quant", "bnb_4bit_use_double_quant"})
    EXPECT_FALSE(config(str("--model m --dataset d --", name, " False")).double_quant) << name;
}

TEST(TrainConfig, TrainTypeFromSwitches) {
  const std::string trl = "--model_name_or_path m --dataset d ", ours = "--model m --dataset d ";
  EXPECT_EQ(config(trl).train_type, "full");
  EXPECT_EQ(config(trl + "--use_peft").train_type, "lora");
  EXPECT_EQ(config(trl + "--use_peft_lora True --use_4bit_quantization False").train_type, "lora");
  EXPECT_EQ(config(trl + "--use_peft true --load_in_4bit true").train_type, "qlora");
  EXPECT_EQ(config(trl + "--use_peft False --use_4bit_quantization False").train_type, "full");
  EXPECT_EQ(config(trl + "--lora_r 8").train_type, "lora");
  EXPECT_TRUE(says(parse(trl + "--lora_r 8"), "because --lora_r is given"));
  EXPECT_TRUE(says(parse(trl + "--use_peft False --lora_r 8"), "--lora_r has no effect with train_type full"));
  EXPECT_EQ(config(trl + "--train_type lora --lora_r 8").train_type, "lora");
  EXPECT_TRUE(says(parse(trl + "--use_peft_lora True --lora_r 8"), "--lora_alpha is not given: PEFT's example would take 16"));
  EXPECT_FALSE(says(parse(trl + "--use_peft_lora True --lora_r 8"), "--lora_rank is not given"));
  EXPECT_EQ(config(ours).train_type, "qlora");
  EXPECT_EQ(config(ours + "--load_in_4bit false").train_type, "lora");
  EXPECT_EQ(config(ours + "--use_peft false").train_type, "full");
  EXPECT_EQ(config("--model_name m --train_type custom_qlora").train_type, "custom_qlora");
  expect_error(trl + "--load_in_4bit", {"--load_in_4bit", "--use_peft true"});
  expect_error(ours + "--train_type full --use_peft true", {"--use_peft true", "contradicts", "--train_type full"});
  expect_error(trl + "--use_8bit_quantization True", {"--use_8bit_quantization", "not yet"});
}

TEST(TrainConfig, Clipping) {
  const std::string line = "--model_name m ";
  EXPECT_EQ(config(line + "--apply_gradient_clipping true").max_grad_norm, 0.3);
  EXPECT_EQ(config(line + "--apply_gradient_clipping true --grad_norm 0.5").max_grad_norm, 0.5);
  EXPECT_EQ(config(line + "--apply_gradient_clipping false --grad_norm 0.5").max_grad_norm, 0);
  EXPECT_EQ(config(line + "--grad_norm 0.5").max_grad_norm, 0);
  EXPECT_TRUE(says(parse(line + "--grad_norm 0.5"), "--grad_norm has no effect"));
  EXPECT_EQ(config("--model m --dataset d --max_grad_norm 0").max_grad_norm, 0);
  expect_error(line + "--apply_gradient_clipping false --max_grad_norm 1", {"contradicts"});
}

TEST(TrainConfig, Warmup) {
  const TrainConfig steps = config("--model m --dataset d --warmup_steps 10"), none = config("--model m --dataset d --warmup_steps 0");
  EXPECT_EQ(steps.warmup_steps, 10);
  EXPECT_EQ(steps.warmup_ratio, -1);
  EXPECT_EQ(none.warmup_steps, 0);
  EXPECT_EQ(none.warmup_ratio, -1);
  EXPECT_TRUE(says(parse("--model m --dataset d --warmup_steps 10 --warmup_ratio 0.1"), "--warmup_steps wins over --warmup_ratio"));
}

TEST(TrainConfig, PrecisionHasOneMeaning) {
  const std::string line = "--model_name_or_path m --dataset d ";
  EXPECT_EQ(config(line + "--bf16 False").precision, "fp32");
  EXPECT_EQ(config(line + "--bf16").precision, "bf16");
  EXPECT_EQ(config(line + "--fp16 False --dtype bfloat16").precision, "bf16");
  expect_error(line + "--bf16 False --precision bf16", {"--bf16 False", "contradicts", "--precision bf16"});
  expect_error(line + "--fp16 True", {"--fp16", "not yet"});
  expect_error(line + "--dtype float32", {"--dtype", "not yet"});
  expect_error(line + "--bnb_4bit_compute_dtype float16", {"--bnb_4bit_compute_dtype", "not yet"});
}

TEST(TrainConfig, KnownValuesThatAreNotBuilt) {
  const std::string line = "--model_name m ";
  const std::vector<std::string> refused = {"--precision fp16_autocast",
                                            "--precision bf16_autocast",
                                            "--precision bf16_buffers_autocast",
                                            "--precision fp16",
                                            "--optimizer adam",
                                            "--optimizer sgd",
                                            "--optimizer adadelta",
                                            "--optim adamw_8bit",
                                            "--optim paged_adamw_8bit",
                                            "--train_type hqq_lora",
                                            "--train_type hqq_dora",
                                            "--train_type bnb_dora",
                                            "--train_type bnb_llama_pro",
                                            "--train_type hqq_llama_pro",
                                            "--sharding_strategy hybrid_full_shard",
                                            "--sharding_strategy HYBRID_SHARD",
                                            "--quant_format fp4",
                                            "--backend mps",
                                            "--backend mlx",
                                            "--device tpu",
                                            "--lr_scheduler warmup_stable_decay",
                                            "--init_lora_weights pissa",
                                            "--save_strategy best",
                                            "--fsdp_state_dict_type LOCAL_STATE_DICT"};
  for (const auto& words : refused) expect_error(line + words, {words, "not yet", "allowed:"});
}

TEST(TrainConfig, DeviceIsChosenByItsNameOrByTheSwitchesOfOthers) {
  const std::string line = "--model m --dataset d ";
  EXPECT_EQ(config(line).device, "auto");
  EXPECT_EQ(config(line + "--backend cuda").device, "cuda");
  EXPECT_EQ(config(line + "--backend auto").device, "auto");
  EXPECT_EQ(config(line + "--device cpu").device, "cpu");
  for (const char* words : {"--use_cpu", "--no_cuda true", "--cpu", "--use_cpu --device cpu"})
    EXPECT_EQ(config(line + words).device, "cpu") << words;
  EXPECT_EQ(config(line + "--use_cpu false").device, "auto");
  expect_error(line + "--use_cpu --device cuda", {"--use_cpu", "contradicts --device cuda"});
  expect_error(line + "--device cude", {"--device", "allowed: auto, cpu, cuda"});
}

TEST(TrainConfig, UpstreamFlagsAreRefusedOrSpokenOf) {
  const std::string line = "--model_name m ";
  for (const char* words : {"--log_to wandb", "--packing True", "--push_to_hub true", "--use_dora True", "--n_bits 3", "--llama_pro_path x",
                            "--profile_memory true", "--report_to wandb"})
    expect_error(line + words, {words, "not yet"});
  expect_error(line + "--packing --n_bits 2", {"--packing true, --n_bits 2", "--packing false, --n_bits 4"});
  for (const char* words : {"--log_to tqdm", "--log_to stdout", "--packing False", "--report_to none", "--n_bits 4",
                            "--label_smoothing_factor 0.0", "--profile_memory false", "--add_special_tokens False"})
    EXPECT_EQ(parse(line + words).notices.size(), 1u) << words;
  for (const char* words : {"--low_memory true", "--reentrant_checkpointing true", "--loading_workers 4", "--master_addr a",
                            "--master_port 12356", "--fsdp_use_orig_params false", "--log_level info"})
    EXPECT_TRUE(says(parse(line + words), str(split(words, ' ')[0], " is accepted and has no effect here: "))) << words;
}

TEST(TrainConfig, OffloadIsSpokenOfWhereTheNumbersLiveOnTheHost) {
  const std::string line = "--model m --dataset d --device cpu ";
  for (const char* words : {"--use_cpu_offload true", "--fsdp_offload_params true", "--use_activation_cpu_offload true",
                            "--activation_offloading true", "--optimizer_offload true"})
    EXPECT_TRUE(says(parse(line + words), str(split(words, ' ')[0], " has no effect with device cpu"))) << words;
  EXPECT_TRUE(config(line + "--fsdp_offload_params true").use_cpu_offload);
  EXPECT_TRUE(config(line + "--activation_offloading true").use_activation_cpu_offload);
  EXPECT_TRUE(parse(line + "--use_cpu_offload false").notices.empty());
}

TEST(TrainConfig, UnknownNamesProposeTheNearest) {
  expect_error("--model m --dataset d --learning_rat 1", {"--learning_rat: there is no option", "perhaps --learning_rate"});
  expect_error("--model m --dataset d --lora-ran 1", {"--lora-ran:", "perhaps --lora_rank"});
  expect_error("--model m --dataset d --xyzzy 1", {"--xyzzy:", "see --help"});
  expect_error("--model m --dataset d run.txt", {"run.txt"});
}

TEST(TrainConfig, ValuesAreChecked) {
  const std::string line = "--model m --dataset d ";
  for (const char* words :
       {"--lr 0", "--lr 1e-4x", "--batch_size 0", "--batch_size 1.5", "--lora_rank 0", "--lora_dropout 1", "--adam_beta2 1",
        "--max_steps 0", "--num_epochs 0", "--context_length -5", "--seed -1", "--logging_steps 0.5", "--shuffle perhaps"})
    EXPECT_NE(error_of(line + words), "") << words;
  EXPECT_EQ(config(line + "--max_steps 1e3").max_steps, 1000);
  expect_error("--dataset d", {"--model is missing"});
  expect_error("--model m", {"--dataset is missing"});
}

TEST(TrainConfig, StrategiesOfTheTrainer) {
  const std::string line = "--model_name_or_path m --dataset d ";
  EXPECT_EQ(config(line + "--save_strategy no").save_strategy, "no");
  EXPECT_EQ(config(line + "--save_strategy epoch").save_strategy, "epoch");
  EXPECT_EQ(config(line + "--evaluation_strategy epoch --eval_dataset e").eval_strategy, "epoch");
  EXPECT_EQ(config(line + "--fsdp_state_dict_type sharded_state_dict").fsdp_state_dict_type, "SHARDED_STATE_DICT");
  EXPECT_EQ(config(line + "--metric_for_best_model loss --load_best_model_at_end").metric_for_best_model, "eval_loss");
  EXPECT_EQ(config(line + "--save_strategy steps").save_steps, 500);
  EXPECT_EQ(config(line + "--eval_strategy steps --eval_dataset e").eval_steps, 10);
  EXPECT_EQ(config(line + "--evaluation_strategy steps --eval_dataset e --eval_steps 7").eval_steps, 7);
  EXPECT_EQ(config(line + "--eval_strategy no --eval_dataset e").eval_dataset, "");
  expect_error(line + "--eval_strategy steps", {"--eval_strategy", "--eval_dataset"});
  EXPECT_FALSE(config(line + "--train_sampling_strategy sequential").shuffle);
  EXPECT_EQ(config(line + "--resume_from_checkpoint True").resume_from_checkpoint, "true");
  EXPECT_EQ(config(line + "--resume_from_checkpoint auto").resume_from_checkpoint, "auto");
  EXPECT_EQ(config(line + "--resume_from_checkpoint out/checkpoint-5").resume_from_checkpoint, "out/checkpoint-5");
}

TEST(TrainConfig, RepeatedFlagsTheLastCounts) {
  const TrainArguments a = parse("--model m --dataset d --lr 1e-4 --learning_rate 2e-4");
  EXPECT_EQ(a.config.lr, 2e-4);
  EXPECT_TRUE(says(a, "--learning_rate 2e-4 counts"));
}

TEST(TrainConfig, MaxStepsAndWorldSize) {
  EXPECT_TRUE(says(parse("--model_name m --max_steps 5"), "--max_steps counts optimizer steps"));
  EXPECT_EQ(config("--model_name m --max_steps 5").max_steps, 5);
  EXPECT_EQ(parse("--model_name m --world_size 4").world_size, 4);
  EXPECT_EQ(parse("--model_name m --world_size -1").world_size, 0);
  EXPECT_EQ(parse("--model_name m").world_size, 0);
}

TEST(TrainConfig, CosineFloorBelongsToTheColumn) {
  EXPECT_NO_THROW(parse("--model_name m --lr_scheduler cosine --cosine_min_lr_ratio 0.1"));
  EXPECT_NO_THROW(parse("--model m --dataset d --cosine_min_lr_ratio 0"));
  expect_error("--model_name m --cosine_min_lr_ratio 0.2", {"--cosine_min_lr_ratio", "not yet"});
  expect_error("--model m --dataset d --cosine_min_lr_ratio 0.1", {"--cosine_min_lr_ratio", "not yet"});
}

TEST(TrainConfig, NoNameStandsForTwoThings) {
  TrainConfig c;
  std::set<std::string> seen;
  for (const auto& name : train_fields(c).names()) EXPECT_TRUE(seen.insert(name).second) << name;
  for (const auto& name : upstream_names()) EXPECT_TRUE(seen.insert(name).second) << name;
}

TEST(TrainConfig, EveryColumnOfDefaultsCanBeSet) {
  TrainConfig c;
  FieldList fields = train_fields(c);
  for (const char* column : {"tessera", "fsdp_qlora", "trl"})
    for (auto& f : fields)
      if (const std::string text = f.default_of(column); !text.empty()) {
        EXPECT_NO_THROW(f.set({f.name(), f.name(), {text}})) << f.name();
        EXPECT_EQ(f.text(), text) << f.name();
      }
}

TEST(TrainConfig, HelpMentionsEveryFieldAndAllDifferingDefaults) {
  TrainConfig c;
  const std::string text = train_help({"--help"}), trl = train_help({"--model_name_or_path", "m", "-h"});
  for (const auto& name : train_fields(c).names()) EXPECT_NE(text.find("--" + name), std::string::npos) << name;
  for (const char* name : {"config", "world_size", "use_peft", "load_in_4bit", "grad_norm"})
    EXPECT_NE(text.find(str("--", name)), std::string::npos) << name;
  EXPECT_NE(text.find("default: 0.0002 (fsdp_qlora: 1e-5; trl: 2e-5)"), std::string::npos);
  EXPECT_NE(text.find("needed (fsdp_qlora: alpaca_sample)"), std::string::npos);
  EXPECT_NE(trl.find("default: 2e-5 (tessera: 0.0002; fsdp_qlora: 1e-5)"), std::string::npos);
}

}  // namespace
}  // namespace tessera
