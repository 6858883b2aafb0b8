#include "cli/command.h"

#include "core/error.h"
#include "core/text.h"

namespace tessera {

const std::vector<Command>& commands() {
  static const std::vector<Command> table = {
      {"train", "fine-tune a model: full, LoRA or QLoRA, on one rank or many", run_train},
      {"plan", "the memory and the time of a run, from its flags and config.json alone", run_plan},
      {"generate", "continue a text with a model and its adapter", run_generate},
      {"eval", "the loss of a model on a dataset", run_eval},
      {"consolidate", "a checkpoint, sharded or whole, ours or PyTorch's, as a PEFT adapter or a Hugging Face model", run_consolidate},
      {"inspect", "rows of a dataset as the model sees them: tokens, and which of them are learned", run_inspect},
      {"tokenize", "texts as token ids", run_tokenize},
      {"launch", "run a command on several ranks", run_launch},
      {"env", "this build and this machine, for a report", run_env},
  };
  return table;
}

const Command& find_command(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& c : commands()) {
    if (c.name == name) return c;
    names.emplace_back(c.name);
  }
  const std::string near = nearest(name, names);
  fail(str("tessera ", name), "there is no command of this name", join(names, ", "),
       near.empty() ? "see tessera --help" : str("perhaps tessera ", near, " is meant"));
}

std::string program_help() {
  std::string out =
      str("Tessera ", version(), ": FSDP and QLoRA fine-tuning of language models\n\nusage: tessera COMMAND [--option value ...]\n\n");
  for (const auto& c : commands()) out += str("  ", c.name, std::string(13 - c.name.size(), ' '), c.summary, "\n");
  return out +
         "\nexamples:\n"
         "  tessera train --model models/stories260k --dataset rows.jsonl --output_dir out\n"
         "  tessera launch --num_processes 4 train run.yaml --lr 1e-4\n"
         "  tessera inspect --model models/stories260k --dataset rows.jsonl --rows 2\n"
         "\ntessera COMMAND --help lists the options of a command.\n";
}

}  // namespace tessera
