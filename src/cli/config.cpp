// The field list of TrainConfig: each option once, with the spellings and defaults of the programs it comes from.
#include "cli/config.h"

#include "optim/schedule.h"

namespace tessera {
namespace {

const char* about =
    "usage: tessera train --model FOLDER --dataset FILE [--option value ...]\n"
    "       tessera train run.yaml [--option value ...]\n\n"
    "Fine-tunes a model. Command lines of fsdp_qlora's train.py and of TRL and PEFT scripts are understood: --model_name takes\n"
    "fsdp_qlora's defaults, --model_name_or_path takes TRL's, --model takes Tessera's; --defaults NAME overrides.";

void add_adapter_fields(FieldList& fields, TrainConfig& c) {
  fields.group("What trains");
  fields.add("train_type", &c.train_type, "full: every weight; lora: adapters on a 16- or 32-bit base; qlora: adapters on a 4-bit base")
      .one_of({"full", "lora", "qlora", "custom_lora", "custom_qlora"})
      .upstream("qlora", "full")
      .not_yet({"hqq_lora", "hqq_dora", "bnb_dora", "bnb_llama_pro", "hqq_llama_pro"});
  fields.add("quant_format", &c.quant_format, "how a qlora base is stored: 4 bits per weight, by quantiles of the normal distribution")
      .also({"bnb_4bit_quant_type"})
      .one_of({"nf4"})
      .not_yet({"fp4", "int8", "affine8", "affine4", "affine3", "affine2", "hqq", "bf16"});
  fields.add("double_quant", &c.double_quant, "store the scales of a 4-bit base in 8 bits: 4.127 instead of 4.5 bits per weight")
      .also({"use_nested_quant", "use_bnb_nested_quant", "bnb_4bit_use_double_quant"})
      .upstream("true", "false");
  fields.add("lora_rank", &c.lora_rank, "inner size of an adapter: more learns more and costs more memory")
      .also({"lora_r"})
      .upstream("64", "16")
      .from(1);
  fields.add("lora_alpha", &c.lora_alpha, "an adapter's output is scaled by alpha / rank").upstream("16", "32").above(0);
  fields.add("lora_dropout", &c.lora_dropout, "share of an adapter's inputs that is dropped in training")
      .upstream("0.1", "0.05")
      .from(0)
      .below(1);
  fields.add("lora_target_modules", &c.lora_target_modules, "the layers that get an adapter: names, one regular expression, or all-linear")
      .also({"target_modules"})
      .upstream("k_proj,q_proj,v_proj,up_proj,down_proj,gate_proj", "q_proj,v_proj")
      .one_of({"all-linear"})
      .means("k_proj,q_proj,v_proj,up_proj,down_proj,gate_proj", {"all"})
      .means("q_proj,v_proj", {"default"})
      .or_text("names separated by commas, or one regular expression");
  fields.add("lora_exclude_modules", &c.lora_exclude_modules, "layers that get none although they match").also({"exclude_modules"});
  fields.add("use_rslora", &c.use_rslora, "scale by alpha / sqrt(rank) instead");
  fields
      .add("init_lora_weights", &c.init_lora_weights,
           "start of an adapter: true: A uniform, B zero; gaussian: A normal, B zero; false: both random")
      .one_of({"true", "gaussian", "false"})
      .not_yet({"eva", "olora", "pissa", "corda", "loftq", "orthogonal", "mica", "lora_ga"});
  fields.add("adapter_init", &c.adapter_init, "folder of a PEFT adapter to start from");
}

void add_step_fields(FieldList& fields, TrainConfig& c) {
  fields.group("Steps");
  fields.add("batch_size", &c.batch_size, "rows per rank and micro-batch").also({"per_device_train_batch_size"}).upstream("1", "8").from(1);
  fields
      .add("gradient_accumulation_steps", &c.gradient_accumulation_steps,
           "micro-batches per optimizer step: a step sees batch_size * this * ranks rows")
      .from(1);
  fields.add("num_epochs", &c.num_epochs, "passes over the data").also({"num_train_epochs"}).upstream("1", "3").above(0);
  fields.add("max_steps", &c.max_steps, "optimizer steps; when given it wins over num_epochs").from(1).or_value(-1);
  fields.add("seed", &c.seed, "of shuffling, dropout and new weights; the same seed gives the same run").from(0);
}

void add_optimizer_fields(FieldList& fields, TrainConfig& c) {
  fields.group("Optimizer");
  fields.add("optimizer", &c.optimizer, "the rule that turns gradients into steps")
      .also({"optim"})
      .one_of({"adamw"})
      .means("adamw", {"adamw_torch", "adamw_torch_fused", "fused_adamw"})
      .not_yet({"adam",
                "fused_adam",
                "sgd",
                "adadelta",
                "adafactor",
                "adagrad",
                "rmsprop",
                "adamw_hf",
                "adamw_8bit",
                "adamw_bnb_8bit",
                "adamw_torch_8bit",
                "adamw_torch_4bit",
                "adamw_apex_fused",
                "adamw_anyprecision",
                "paged_adamw",
                "paged_adamw_32bit",
                "paged_adamw_8bit",
                "lion_8bit",
                "lion_32bit",
                "paged_lion_8bit",
                "paged_lion_32bit",
                "ademamix",
                "ademamix_8bit",
                "lomo",
                "galore_adamw",
                "galore_adamw_8bit",
                "apollo_adamw",
                "schedule_free_adamw",
                "schedule_free_sgd"});
  fields.add("lr", &c.lr, "size of a step after warm-up").also({"learning_rate"}).upstream("1e-5", "2e-5").above(0);
  fields.add("weight_decay", &c.weight_decay, "share of a weight that is taken away per step, times lr")
      .also({"wd"})
      .upstream("0.1", "0")
      .from(0);
  fields.add("adam_beta1", &c.adam_beta1, "memory of the mean of gradients").from(0).below(1);
  fields.add("adam_beta2", &c.adam_beta2, "memory of the mean of squared gradients").upstream("0.95", "0.999").from(0).below(1);
  fields.add("adam_epsilon", &c.adam_epsilon, "keeps the divisor away from zero").upstream("1e-5", "1e-8").above(0);
  fields.add("lr_scheduler", &c.lr_scheduler, "how the step size changes over the run")
      .also({"lr_scheduler_type"})
      .upstream("constant", "linear")
      .one_of(schedule_names())
      .not_yet({"cosine_with_min_lr", "cosine_warmup_with_min_lr", "warmup_stable_decay", "reduce_lr_on_plateau", "greedy"});
  fields
      .add("warmup_steps", &c.warmup_steps, "steps over which the step size grows from 0; below 1 it is a share of the run; -1: not given")
      .from(0)
      .or_value(-1);
  fields.add("warmup_ratio", &c.warmup_ratio, "the same as a share of the run; -1: not given")
      .upstream("-1", "-1")
      .from(0)
      .up_to(1)
      .or_value(-1);
  fields.add("max_grad_norm", &c.max_grad_norm, "gradients longer than this are shortened to it; 0: never").upstream("0", "1").from(0);
  fields
      .add("max_skipped_steps", &c.max_skipped_steps,
           "a step whose loss or gradient is not finite changes nothing and is counted; the run stops when there are more than this in all")
      .from(0);
}

void add_machine_fields(FieldList& fields, TrainConfig& c) {
  fields.group("Precision, memory, ranks");
  fields.add("precision", &c.precision, "of weights and activations; gradients, adapters' optimizer state and sums are fp32")
      .one_of({"bf16", "fp32"})
      .not_yet({"fp16", "fp16_autocast", "bf16_autocast", "bf16_buffers_autocast", "mp_fp16_autocast", "mp_bf16_autocast",
                "mp_bf16_buffers_autocast"});
  fields
      .add("gradient_checkpointing", &c.gradient_checkpointing,
           "true: keep a few activations of each layer and compute the others again, for less memory; false: keep all; auto: keep those of "
           "as "
           "many layers as there is memory for. No bit of the result depends on it")
      .one_of({"auto"})
      .switches()
      .also({"use_gradient_checkpointing"});
  fields
      .add("keep_layers", &c.keep_layers,
           "of how many layers, the last ones, all activations are kept; 0: only each layer's input, the least memory; auto: as the plan "
           "finds room")
      .one_of({"auto"})
      .or_text("a number");
  fields
      .add("use_cpu_offload", &c.use_cpu_offload,
           "of a GPU: the frozen weights stay in the host's memory, once per machine, and each layer is copied ahead of its use")
      .also({"fsdp_offload_params"});
  fields
      .add("use_activation_cpu_offload", &c.use_activation_cpu_offload,
           "of a GPU: what is kept of a layer from forward to backward waits in the host's memory; no more is kept than its input")
      .also({"activation_offloading"});
  fields.add("optimizer_offload", &c.optimizer_offload,
             "of a GPU: trained values in fp32 and the optimizer's state live in the host's memory, and the CPU updates them");
  fields.add("force", &c.force, "start although the plan says that it does not fit into the memory");
  fields
      .add("sharding_strategy", &c.sharding_strategy,
           "full_shard: each rank keeps a share of everything; shard_grad_op: gathered weights stay until the backward pass; ddp: every "
           "rank holds all that trains")
      .also({"fsdp_sharding_strategy"})
      .one_of({"full_shard", "shard_grad_op", "ddp"})
      .means("full_shard", {"1"})
      .means("shard_grad_op", {"2"})
      .means("ddp", {"NO_SHARD", "3"})
      .not_yet({"hybrid_full_shard", "hybrid_shard_grad_op", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2", "4", "5"});
  fields.add("threads", &c.threads, "threads per rank; 0: the cores of the machine shared by its ranks")
      .also({"num_cpu_threads_per_process"})
      .from(0);
  fields.add("comm_timeout", &c.comm_timeout, "seconds that a rank waits for the others; then the run ends and says which rank is missing")
      .above(0);
  add_device_field(fields, c.device);
}

void add_output_fields(FieldList& fields, TrainConfig& c) {
  fields.group("Output");
  fields.add("output_dir", &c.output_dir, "folder for checkpoints, the result and the records of the run")
      .upstream("output", "trainer_output");
  fields.add("save_model", &c.save_model, "write the trained adapter or model at the end");
  fields
      .add("save_strategy", &c.save_strategy,
           "when checkpoints are written: steps: every save_steps; epoch: at the end of each; no: only when a signal stops the run")
      .one_of({"steps", "epoch", "no"})
      .not_yet({"best"});
  fields.add("save_steps", &c.save_steps, "optimizer steps between checkpoints; 0: none").upstream("0", "500").from(0);
  fields.add("save_total_limit", &c.save_total_limit, "checkpoints to keep, the newest and the best; 0: all").from(0);
  fields
      .add("fsdp_state_dict_type", &c.fsdp_state_dict_type,
           "of checkpoints: FULL_STATE_DICT: whole tensors in one file; SHARDED_STATE_DICT: a file of each rank, written at once. Both are "
           "resumed on any number of ranks")
      .also({"state_dict_type"})
      .one_of({"FULL_STATE_DICT", "SHARDED_STATE_DICT"})
      .not_yet({"LOCAL_STATE_DICT"});
  fields.add("async_save", &c.async_save,
             "training goes on while a copy of the state in memory is written; false: it waits, and needs no copy");
  fields.add("on_save_error", &c.on_save_error, "when a checkpoint cannot be written: stop, or continue without it and warn")
      .one_of({"stop", "continue"});
  fields.add("load_best_model_at_end", &c.load_best_model_at_end,
             "what is written at the end is the checkpoint with the lowest eval_loss; needs an evaluation at every save");
  fields.add("metric_for_best_model", &c.metric_for_best_model, "what is lowest for the best checkpoint")
      .one_of({"eval_loss"})
      .means("eval_loss", {"loss"});
  fields
      .add("resume_from_checkpoint", &c.resume_from_checkpoint,
           "go on from this checkpoint folder; true or latest: from the newest of output_dir; auto: from the newest whole one, or from the "
           "beginning")
      .means("true", {"true"})
      .means("latest", {"latest"})
      .means("auto", {"auto"})
      .means("", {"false"})
      .or_text("a folder");
  fields.add("logging_steps", &c.logging_steps, "optimizer steps between lines of progress")
      .also({"log_every_n_steps"})
      .upstream("1", "10")
      .from(1);
  fields
      .add(
          "eval_strategy", &c.eval_strategy,
          "when eval_dataset is evaluated, beside the end: steps: every eval_steps; epoch: after each; no: never; auto: as eval_steps says")
      .also({"evaluation_strategy"})
      .one_of({"auto", "steps", "epoch", "no"});
  fields.add("eval_steps", &c.eval_steps, "optimizer steps between evaluations; 0: only at the end").from(0);
  fields.add("profile", &c.profile,
             "time every operation: print where a step's time goes, and write output_dir/profile.json, a trace for ui.perfetto.dev");
}

}  // namespace

void add_device_field(FieldList& fields, std::string& device) {
  fields
      .add("device", &device,
           "where the numbers live: cuda: an NVIDIA GPU for each rank, of those in CUDA_VISIBLE_DEVICES; auto: cuda where there are GPUs, "
           "else cpu")
      .also({"backend"})
      .one_of({"auto", "cpu", "cuda"})
      .means("cuda", {"gpu"})
      .not_yet({"mps", "mlx", "tpu", "xla", "xpu", "npu", "hpu", "mlu", "musa"});
}

void add_data_fields(FieldList& fields, TrainConfig& c) {
  fields.group("Model and data");
  fields
      .add("model", &c.model,
           "folder with config.json, weights and tokenizer, as downloaded from Hugging Face; its spelling picks the defaults")
      .also({"model_name", "model_name_or_path"})
      .needed();
  fields.add("defaults", &c.defaults, "whose defaults hold for what is not given").one_of({"tessera", "fsdp_qlora", "trl"});
  fields
      .add("dataset", &c.dataset,
           "rows to learn from: a .jsonl or .json file, or alpaca, alpaca_sample, dummy, guanaco, sql, orca_math as fsdp_qlora has them")
      .also({"dataset_name"})
      .upstream("alpaca_sample", "")
      .needed();
  fields.add("dataset_text_field", &c.dataset_text_field, "the column of plain text");
  fields.add("dataset_samples", &c.dataset_samples, "rows of alpaca_sample, dummy and orca_math").from(1);
  fields.add("context_length", &c.context_length, "longest row in tokens; what is beyond is cut off")
      .also({"max_length", "max_seq_length", "max_seq_len"})
      .upstream("512", "1024")
      .from(1);
  fields.add("completion_only_loss", &c.completion_only_loss, "learn the completions only, where rows have a prompt and a completion");
}

FieldList train_fields(TrainConfig& c) {
  FieldList fields("train", about);
  add_data_fields(fields, c);
  fields.add("eval_dataset", &c.eval_dataset, "rows to measure the loss on; none: no evaluation");
  fields.add("shuffle", &c.shuffle, "a new order of the rows in every epoch");
  fields.add("init", &c.init, "random: new weights from the seed, for a folder with only config.json").one_of({"pretrained", "random"});
  add_adapter_fields(fields, c);
  add_step_fields(fields, c);
  add_optimizer_fields(fields, c);
  add_machine_fields(fields, c);
  add_output_fields(fields, c);
  return fields;
}

}  // namespace tessera
