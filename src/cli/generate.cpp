// tessera generate: text from a model, with or without an adapter, streamed to stdout.
#include <chrono>
#include <cstdio>

#include "cli/command.h"
#include "cli/run_record.h"
#include "comm/rank_device.h"
#include "core/error.h"
#include "core/log.h"
#include "core/text.h"
#include "data/template.h"
#include "data/tokenizer.h"
#include "train/generate.h"

namespace tessera {
namespace {

struct GenerateOptions {
  ModelChoice model;
  std::string prompt, prompt_template = "none";
  int64_t max_new_tokens = 128;
  SamplingOptions sampling;
};

FieldList generate_fields(GenerateOptions& o) {
  FieldList fields("generate",
                   "usage: tessera generate --model FOLDER [--adapter FOLDER] --prompt TEXT [--temperature T]\n\n"
                   "Writes the continuation to stdout as it comes. Without --temperature it is greedy: the same every time.");
  add_model_fields(fields, o.model);
  fields.group("Text");
  fields.add("prompt", &o.prompt, "the text to continue");
  fields.add("template", &o.prompt_template, "what the prompt is put into: none, alpaca (an instruction), chatml (a user's turn)")
      .one_of({"none", "alpaca", "chatml"});
  fields.add("max_new_tokens", &o.max_new_tokens, "tokens at most; it ends earlier at the model's end token").from(1);
  fields.group("Sampling");
  fields.add("temperature", &o.sampling.temperature, "0: greedy; 1: as the model says; lower is safer, higher more varied").from(0);
  fields.add("top_k", &o.sampling.top_k, "only the k likeliest tokens; 0: all").from(0);
  fields.add("top_p", &o.sampling.top_p, "only the likeliest tokens that together reach this probability").above(0).below(1).or_value(1);
  fields.add("seed", &o.sampling.seed, "of the draws; the same seed gives the same text").from(0);
  return fields;
}

std::string templated(const GenerateOptions& o) {
  if (o.prompt_template == "alpaca") return fill_template("alpaca", {{"instruction", o.prompt}});
  if (o.prompt_template == "chatml") return render_chat(chatml(), {{"user", o.prompt}}, true);
  return o.prompt;
}

// End tokens: of config.json and generation_config.json, else the tokenizer's.
std::vector<int64_t> stop_ids(const ModelConfig& config, const Tokenizer& tokenizer) {
  if (!config.eos.empty()) return config.eos;
  if (tokenizer.eos() >= 0) return {tokenizer.eos()};
  return {};
}

using Clock = std::chrono::steady_clock;
double seconds_between(Clock::time_point begin, Clock::time_point end) { return std::chrono::duration<double>(end - begin).count(); }

// The first new token ends the run of the prompt; the rate is that of the others.
void report(const LoadedModel& model, size_t prompt, size_t count, Clock::time_point start, Clock::time_point first) {
  std::string line = str(prompt, " prompt tokens in ", fixed(seconds_between(start, first), 2), " s, ", count, " new ones");
  if (count > 1) {
    const double seconds = seconds_between(first, Clock::now()), rate = double(count - 1) / seconds;
    line += str(" in ", fixed(seconds, 2), " s: ", fixed(rate, 1), " tokens/s, ", fixed(rate * weight_bytes(model.model) * 1e-9, 1),
                " GB/s of weights");
  }
  say(line);
}

void stream(LoadedModel& model, const Tokenizer& tokenizer, const GenerateOptions& o) {
  const std::vector<int32_t> prompt = tokenizer.encode(templated(o), true);
  TokenStream text(tokenizer, true);
  for (const int32_t id : prompt) text.next(id);
  const Clock::time_point start = Clock::now();
  Clock::time_point first = start;
  const auto ids = generate(model.pass, prompt, o.max_new_tokens, stop_ids(model.config, tokenizer), o.sampling, [&](int32_t id) {
    if (first == start) first = Clock::now();
    std::fputs(text.next(id).c_str(), stdout);
    std::fflush(stdout);
    return true;
  });
  std::puts(text.rest().c_str());
  std::fflush(stdout);
  report(model, prompt.size(), ids.size(), start, first);
}

}  // namespace

int run_generate(const Arguments& args) {
  GenerateOptions o;
  FieldList fields = generate_fields(o);
  if (!read_options(fields, args)) return 0;
  if (o.sampling.temperature == 0 && (o.sampling.top_k > 0 || o.sampling.top_p < 1))
    fail("--top_k, --top_p", "have no effect without --temperature: generation is greedy", "--temperature above 0", "add --temperature 1");
  if (started_by_mpi() && make_mpi_comm()->size() > 1)
    fail("generate", "was started on several ranks", "one process", "start it without launch or mpiexec; --threads uses all cores");
  const auto comm = make_single_comm();
  const auto backend = make_backend(rank_device(o.model.device, *comm), int(o.model.threads));
  const ModelRequest request = choose_model(o.model);
  if (!Tokenizer::present(request.folder))
    fail(str("--model ", request.folder), "has no tokenizer", "a folder with tokenizer.json or tokenizer.model",
         "add the tokenizer's files");
  const Tokenizer tokenizer = Tokenizer::load(request.folder);
  LoadedModel model(request, *comm, *backend);
  stream(model, tokenizer, o);
  return 0;
}

}  // namespace tessera
