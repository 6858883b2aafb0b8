#include "bench/step/request.h"

namespace tessera {

StepRequest::StepRequest() {
  config.init = "random";
  config.lora_rank = 8;
  config.lora_alpha = 16;
  config.lr = 1e-4;
  config.gradient_checkpointing = "true";
}

FieldList step_fields(StepRequest& r) {
  TrainConfig& c = r.config;
  FieldList fields("step (bench)",
                   "usage: build/bench/step --model FOLDER [--option value ...]\n"
                   "       mpiexec -n 2 build/bench/step --model FOLDER --threads 1 ...\n\n"
                   "Times training steps, or generation, on random ids. FOLDER needs only a config.json (bench/shapes).");
  fields.group("Model");
  fields.add("model", &c.model, "Hugging Face model folder").needed();
  fields.add("init", &c.init, "random: weights from the seed; pretrained: the folder's").one_of({"random", "pretrained"});
  fields.add("train_type", &c.train_type, "what trains").one_of({"full", "lora", "qlora"});
  fields.add("double_quant", &c.double_quant, "scales of a 4-bit base in 8 bits");
  fields.add("lora_rank", &c.lora_rank, "inner size of the adapters, on all linear layers").from(1);
  fields.add("lora_dropout", &c.lora_dropout, "of their inputs").from(0).below(1);
  fields.add("precision", &c.precision, "of weights and activations").one_of({"bf16", "fp32"});
  fields.group("Step");
  fields.add("context_length", &c.context_length, "ids of a row").from(2);
  fields.add("batch_size", &c.batch_size, "rows of a rank").from(1);
  fields
      .add("gradient_checkpointing", &c.gradient_checkpointing,
           "true: compute activations again; false: keep all; auto: keep as many as fit")
      .one_of({"true", "false", "auto"});
  fields.add("sharding_strategy", &c.sharding_strategy, "with several ranks").one_of({"full_shard", "shard_grad_op", "ddp"});
  fields.add("steps", &r.steps, "timed steps; one more comes before them").from(1);
  fields.group("Generation");
  fields.add("generate", &r.generate, "new tokens of one row, instead of training steps; the model has no adapter then").from(0);
  fields.add("prompt", &r.prompt, "tokens of the prompt").from(1);
  fields.group("Machine and output");
  fields.add("device", &c.device, "where the numbers live").one_of({"cpu", "cuda"});
  fields.add("limit_tflops", &r.limit_tflops, "what a rank's device can do in 1e12 FLOP/s; 0: measured on cpu, else the share is not told")
      .from(0);
  fields.add("limit_tbs", &r.limit_tbs, "what it can read in 1e12 bytes/s; generation; 0: likewise").from(0);
  fields.add("threads", &c.threads, "per rank; 0: the cores of the machine shared by its ranks").from(0);
  fields.add("seed", &c.seed, "of weights and ids").from(0);
  fields.add("json", &r.json, "one line for programs");
  return fields;
}

}  // namespace tessera
