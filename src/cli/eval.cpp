// tessera eval: token-mean loss and perplexity of a model, with or without an adapter, on a data set.
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/command.h"
#include "cli/run_record.h"
#include "comm/rank_device.h"
#include "core/log.h"
#include "core/text.h"
#include "data/tokenizer.h"
#include "io/json.h"
#include "train/evaluate.h"

namespace tessera {
namespace {

struct EvalOptions {
  ModelChoice model;
  TrainConfig data;
  bool json = false;
};

FieldList eval_fields(EvalOptions& o) {
  FieldList fields(
      "eval",
      "usage: tessera eval --model FOLDER [--adapter FOLDER] --dataset FILE [--json]\n\n"
      "Mean loss per target token, and perplexity = exp(loss). Rows, templates and masks are those of the adapter's run, else Tessera's.");
  add_model_fields(fields, o.model);
  fields.group("Data");
  fields.add("dataset", &o.data.dataset, "JSON or JSONL file, as train takes it").needed();
  fields.add("dataset_text_field", &o.data.dataset_text_field, "column of text rows");
  fields.add("completion_only_loss", &o.data.completion_only_loss, "loss on completions only, where a row has prompt and completion");
  fields.add("context_length", &o.data.context_length, "tokens of a row; the rest is cut").also({"max_seq_length", "max_length"}).from(2);
  fields.add("batch_size", &o.data.batch_size, "rows at once").from(1);
  fields.add("defaults", &o.data.defaults, "whose templates and masks").one_of({"tessera", "fsdp_qlora", "trl"});
  fields.group("Output");
  fields.add("json", &o.json, "one JSON object on stdout instead of a line");
  return fields;
}

void print(const EvalOptions& o, const Evaluation& e) {
  if (!speaks()) return;
  if (o.json) {
    const Json line = {{"loss", e.loss}, {"perplexity", e.perplexity()}, {"tokens", e.tokens}, {"rows", e.rows}};
    std::puts(line.dump().c_str());
  } else {
    std::puts(str("loss ", fixed(e.loss, 6), "  perplexity ", fixed(e.perplexity(), 4), "  (", e.tokens, " tokens of ", e.rows, " rows)")
                  .c_str());
  }
}

}  // namespace

int run_eval(const Arguments& args) {
  EvalOptions o;
  FieldList fields = eval_fields(o);
  if (!read_options(fields, args)) return 0;
  if (const auto run = recorded_run(o.model.adapter)) {  // rows as the adapter's run saw them, unless said otherwise
    o.data.defaults = run->defaults, o.data.context_length = run->context_length;
    o.data.dataset_text_field = run->dataset_text_field, o.data.completion_only_loss = run->completion_only_loss;
    read_options(fields, args);
  }
  const auto comm = started_by_mpi() ? make_mpi_comm() : make_single_comm();
  set_log_rank(comm->rank(), comm->size());
  const std::string device = rank_device(o.model.device, *comm);
  const auto backend = make_backend(device, rank_threads(device, o.model.threads, *comm));
  const ModelRequest request = choose_model(o.model);
  std::optional<Tokenizer> tokenizer;
  if (Tokenizer::present(request.folder)) tokenizer = Tokenizer::load(request.folder);
  const Dataset data = Dataset::load(dataset_options(o.data, o.data.dataset), tokenizer ? &*tokenizer : nullptr,
                                     int32_t(read_model_config(request.folder).vocab));
  report_rows(data, "data ");
  LoadedModel model(request, *comm, *backend);
  print(o, evaluate(model.pass, *comm, data, o.data.batch_size, true));
  return 0;
}

}  // namespace tessera
