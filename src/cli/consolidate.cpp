// tessera consolidate: a checkpoint as a PEFT adapter or a Hugging Face model.
#include "train/consolidate.h"

#include <cstdio>

#include "cli/command.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"

namespace tessera {
namespace {

FieldList consolidate_fields(ConsolidateRequest& o) {
  FieldList fields(
      "consolidate",
      "usage: tessera consolidate RUN_OR_CHECKPOINT OUT [--dtype fp32|bf16] [--model FOLDER] [--adapter_config FOLDER]\n\n"
      "Writes a checkpoint as a PEFT adapter (adapter_config.json, adapter_model.safetensors) or as a Hugging Face model\n"
      "(config.json, model.safetensors, tokenizer), whichever it holds, tensor by tensor. Reads checkpoints of tessera train,\n"
      "of one file or sharded; a run's folder means its newest checkpoint. Also reads the folders in which accelerate and\n"
      "PyTorch's FSDP save (pytorch_model_fsdp_0, optimizer_0: .metadata and *.distcp) and files of torch.save\n"
      "(pytorch_model_fsdp.bin); nothing in them is ever run. Every file is read back and compared before OUT appears.");
  fields.group("Options");
  fields.add("from", &o.from, "a run's folder, or a checkpoint").also({"checkpoint"}).needed();
  fields.add("to", &o.to, "the folder to write; it must not be there, or be empty").also({"out", "output_dir"}).needed();
  fields
      .add("dtype", &o.dtype,
           "of the tensors written; not given: a model of ours in the precision of its run, everything else as it is stored")
      .one_of({"fp32", "bf16"})
      .means("fp32", {"float32"})
      .means("bf16", {"bfloat16"});
  fields.add("model", &o.model, "folder of config.json and tokenizer; not given: as the checkpoint says, or beside it")
      .also({"model_name", "model_name_or_path"});
  fields.add("adapter_config", &o.adapter_config,
             "adapter_config.json or its folder, for an adapter of PyTorch's; not given: beside the checkpoint");
  return fields;
}

}  // namespace

int run_consolidate(const Arguments& args) {
  ConsolidateRequest request;
  FieldList fields = consolidate_fields(request);
  if (asks_for_help(args)) return read_options(fields, args);  // prints it
  const CommandLine line = read_command_line(args, fields);
  const std::vector<Given> places = {{"from", "RUN_OR_CHECKPOINT", {}}, {"to", "OUT", {}}};
  for (size_t i = 0; i < line.words.size(); ++i) {
    if (i == places.size())
      fail("tessera consolidate", str("\"", line.words[i], "\" is one word too many"), "RUN_OR_CHECKPOINT OUT",
           "see tessera consolidate --help");
    fields.find(places[i].name)->set({places[i].name, places[i].where, {line.words[i]}});
  }
  for (const Given& given : line.given) {
    Field* f = fields.find(given.name);
    if (!f) unknown_name(given, fields.names());
    f->set(given);
  }
  check_needed(fields);
  const Consolidated made = consolidate(request);
  std::printf("%s  %s of %lld tensors, %s, from %s\n", request.to.c_str(), made.what.c_str(), static_cast<long long>(made.tensors),
              human_bytes(made.bytes).c_str(), made.from.c_str());
  if (!made.note.empty()) warn(made.note);
  return 0;
}

}  // namespace tessera
