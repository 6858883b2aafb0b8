// From flags to TrainConfig: which column of defaults, and what the switches of the upstream programs become.
#include <algorithm>

#include "cli/config.h"
#include "cli/upstream.h"
#include "core/error.h"
#include "core/shown.h"
#include "core/text.h"

namespace tessera {
namespace {

using Notices = std::vector<std::string>;

// Spellings that are no member of TrainConfig: each becomes one, or must agree with one.
struct Spelled {
  std::string config;
  int64_t world_size = -1;
  bool use_peft = false, load_in_4bit = false;
  bool bf16 = false, fp16 = false, use_cpu = false;
  std::string dtype, compute_dtype;
  bool apply_gradient_clipping = false;
  double grad_norm = 0.3;
  double cosine_min_lr_ratio = 0;
  std::string sampling, logging;
};

void add_spelled_fields(FieldList& fields, Spelled& s) {
  fields.group("Running");
  fields.add("config", &s.config, "YAML or JSON file with the same names; the command line wins").sets_others();
  fields.add("world_size", &s.world_size, "ranks; above 1 the program starts itself under mpiexec; -1: one, or as mpiexec says")
      .also({"num_processes"})
      .from(1)
      .or_value(-1);
  fields.group("Spellings that set other options");
  auto add = [&](const char* name, Place place, const char* help) -> Field& { return fields.add(name, place, help).sets_others(); };
  add("use_peft", &s.use_peft, "train_type lora or qlora; false: full").also({"use_peft_lora"});
  add("load_in_4bit", &s.load_in_4bit, "train_type qlora; false: lora or full").also({"use_4bit_quantization"});
  add("bf16", &s.bf16, "precision bf16; false: fp32");
  add("fp16", &s.fp16, "true is not yet built");
  add("dtype", &s.dtype, "must agree with precision").also({"torch_dtype"}).one_of({"auto", "bfloat16", "float32"}).not_yet({"float16"});
  add("bnb_4bit_compute_dtype", &s.compute_dtype, "must agree with precision").one_of({"bfloat16", "float32"}).not_yet({"float16"});
  add("use_cpu", &s.use_cpu, "device cpu; false: as --device says").also({"no_cuda", "cpu"});
  add("apply_gradient_clipping", &s.apply_gradient_clipping, "max_grad_norm is grad_norm; false: 0");
  add("grad_norm", &s.grad_norm, "max_grad_norm, with apply_gradient_clipping; 0.3 when not given").above(0);
  add("cosine_min_lr_ratio", &s.cosine_min_lr_ratio, "lowest share of lr under cosine: 0.1 with the defaults of fsdp_qlora, else 0")
      .from(0);
  add("train_sampling_strategy", &s.sampling, "shuffle").one_of({"random", "sequential"}).not_yet({"group_by_length"});
  add("logging_strategy", &s.logging, "of logging_steps").one_of({"steps"}).not_yet({"epoch", "no"});
}

// What was given for a field, the last time; null when nothing was.
class Said {
 public:
  Said(FieldList& fields, const std::vector<Given>& all) : fields_(fields), all_(all) {}
  const Given* operator()(std::string_view name) const {
    const Field* f = fields_.find(name);
    for (auto it = all_.rbegin(); it != all_.rend(); ++it)
      if (f->answers_to(it->name)) return &*it;
    return nullptr;
  }

 private:
  FieldList& fields_;
  const std::vector<Given>& all_;
};

[[noreturn]] void contradiction(const Given& a, const Given& b) {
  auto text = [](const Given& g) { return str(g.where, " ", join(g.values, " ")); };
  fail(a.where, str(text(a), " contradicts ", text(b)), "options that agree", "leave one of them out");
}

bool has_adapter(const std::string& train_type) { return train_type != "full"; }
bool has_four_bits(const std::string& train_type) { return train_type == "qlora" || train_type == "custom_qlora"; }

constexpr const char* adapter_options[] = {"lora_rank",  "lora_alpha",        "lora_dropout", "lora_target_modules", "lora_exclude_modules",
                                           "use_rslora", "init_lora_weights", "adapter_init"};

// The first adapter option that was given.
const Given* adapter_option(const Said& said) {
  for (const char* name : adapter_options)
    if (const Given* g = said(name)) return g;
  return nullptr;
}

void check_train_type(const TrainConfig& c, const Spelled& s, const Said& said) {
  const Given *peft = said("use_peft"), *four = said("load_in_4bit");
  if (peft && s.use_peft != has_adapter(c.train_type)) contradiction(*peft, *said("train_type"));
  if (four && s.load_in_4bit != has_four_bits(c.train_type)) contradiction(*four, *said("train_type"));
}

// train_type wins; else the switches change what the column has. An adapter option asks for an adapter unless use_peft says no.
void resolve_train_type(TrainConfig& c, const Spelled& s, const Said& said, Notices& notices) {
  if (said("train_type")) return check_train_type(c, s, said);
  bool adapter = has_adapter(c.train_type), four_bit = has_four_bits(c.train_type);
  if (said("use_peft")) {
    adapter = s.use_peft, four_bit = four_bit && adapter;
  } else if (const Given* g = adapter_option(said); g && !adapter) {
    adapter = true;
    notices.push_back(str("an adapter is trained because ", g->where, " is given (--use_peft false: every weight)"));
  }
  if (const Given* four = said("load_in_4bit")) {
    four_bit = s.load_in_4bit;
    if (four_bit && !adapter)
      fail(four->where, "4-bit weights cannot be trained, and no adapter is asked for", "4-bit weights with an adapter",
           "add --use_peft true");
  }
  if (adapter != has_adapter(c.train_type) || four_bit != has_four_bits(c.train_type)) c.train_type = train_type_of(adapter, four_bit);
}

// Files of earlier runs hold every option: only values that are not the default are spoken of.
void note_unused(const TrainConfig& c, FieldList& fields, const Said& said, Notices& notices) {
  auto unused = [&](const char* name) {
    const Field* f = fields.find(name);
    const Given* g = said(name);
    if (g && f->text() != f->default_of(c.defaults)) notices.push_back(str(g->where, " has no effect with train_type ", c.train_type));
  };
  if (!has_adapter(c.train_type))
    for (const char* name : adapter_options) unused(name);
  if (!has_four_bits(c.train_type)) unused("quant_format"), unused("double_quant");
}

void note_offload(const TrainConfig& c, const Said& said, Notices& notices) {
  if (c.device != "cpu") return;
  for (const auto& [name, asked] : {std::pair{"use_cpu_offload", c.use_cpu_offload},
                                    {"use_activation_cpu_offload", c.use_activation_cpu_offload},
                                    {"optimizer_offload", c.optimizer_offload}})
    if (asked) notices.push_back(str(said(name)->where, " has no effect with device cpu: all numbers live on the host"));
}

// PEFT's example has its own adapter defaults under TRL's spelling of the model; its switches give it away.
void note_peft_example(const std::vector<Given>& all, const Said& said, Notices& notices) {
  const bool peft_example = std::any_of(all.begin(), all.end(), [](const Given& g) {
    return g.name == "use_peft_lora" || g.name == "use_4bit_quantization" || g.name == "use_nested_quant";
  });
  if (!peft_example) return;
  for (const auto& [name, value] :
       {std::pair{"lora_rank", "64"}, {"lora_alpha", "16"}, {"lora_dropout", "0.1"}, {"lora_target_modules", "all-linear"}})
    if (!said(name)) notices.push_back(str("--", name, " is not given: PEFT's example would take ", value));
}

void agree_on_dtype(const TrainConfig& c, const Given* given, const std::string& dtype) {
  if (!given || dtype == "auto" || dtype == (c.precision == "bf16" ? "bfloat16" : "float32")) return;
  fail(given->where, str(dtype, " beside precision ", c.precision, ": two types in one run are not yet built"),
       c.precision == "bf16" ? "bfloat16" : "float32", "leave it out, or choose --precision");
}

void resolve_precision(TrainConfig& c, const Spelled& s, const Said& said) {
  if (s.fp16) fail(said("fp16")->where, "fp16 is not yet built", "false", "use --precision bf16");
  if (const Given* bf16 = said("bf16")) {
    const std::string asked = s.bf16 ? "bf16" : "fp32";
    if (const Given* precision = said("precision"); precision && c.precision != asked) contradiction(*bf16, *precision);
    c.precision = asked;
  }
  agree_on_dtype(c, said("dtype"), s.dtype);
  agree_on_dtype(c, said("bnb_4bit_compute_dtype"), s.compute_dtype);
}

void resolve_device(TrainConfig& c, const Spelled& s, const Said& said) {
  if (!s.use_cpu) return;
  if (const Given* device = said("device"); device && c.device != "cpu") contradiction(*said("use_cpu"), *device);
  c.device = "cpu";
}

void resolve_clipping(TrainConfig& c, const Spelled& s, const Said& said, Notices& notices) {
  const Given *apply = said("apply_gradient_clipping"), *norm = said("grad_norm"), *max = said("max_grad_norm");
  if (!apply) {
    if (norm) notices.push_back(str(norm->where, " has no effect without --apply_gradient_clipping true, as in fsdp_qlora"));
    return;
  }
  if (max && (c.max_grad_norm > 0) != s.apply_gradient_clipping) contradiction(*apply, *max);
  if (max && norm && c.max_grad_norm != s.grad_norm) contradiction(*norm, *max);
  if (!max) c.max_grad_norm = s.apply_gradient_clipping ? s.grad_norm : 0;
}

void resolve_schedule(TrainConfig& c, const Spelled& s, const Said& said, Notices& notices) {
  const Given *steps = said("warmup_steps"), *ratio = said("warmup_ratio");
  if (steps && !ratio && c.warmup_steps >= 0) c.warmup_ratio = -1;
  if (steps && ratio && c.warmup_steps > 0 && c.warmup_ratio > 0 && c.defaults != "fsdp_qlora")
    notices.push_back(str(steps->where, " wins over ", ratio->where));
  const double floor = c.defaults == "fsdp_qlora" ? 0.1 : 0;
  if (const Given* low = said("cosine_min_lr_ratio"); low && s.cosine_min_lr_ratio != floor)
    fail(low->where, str(s.cosine_min_lr_ratio, " is not yet built"), str(floor), "leave it out");
  if (const Given* max = said("max_steps"); max && c.defaults == "fsdp_qlora" && c.max_steps > 0)
    notices.push_back(str(max->where, " counts optimizer steps of the whole run (in fsdp_qlora: micro-batches of an epoch)"));
}

void resolve_strategies(TrainConfig& c, const Spelled& s, const Said& said, Notices& notices) {
  if (!s.sampling.empty()) c.shuffle = s.sampling == "random";
  const Given* evaluating = said("eval_strategy");
  if (!evaluating || c.eval_strategy == "auto") return;
  if (c.eval_strategy == "no") {
    if (!c.eval_dataset.empty()) notices.push_back(str("--eval_dataset has no effect with ", evaluating->where, " no"));
    c.eval_dataset.clear();
  } else if (c.eval_dataset.empty()) {
    fail(evaluating->where, "there are no rows to evaluate on", "evaluation with --eval_dataset", "add --eval_dataset FILE");
  } else if (c.eval_strategy == "steps" && !said("eval_steps")) {
    c.eval_steps = c.logging_steps;
  }
}

// Model spellings of one place, each with its column.
std::string column_of(const std::vector<Given>& given) {
  const Given* first = nullptr;
  for (const auto& g : given) {
    if (g.name != "model" && g.name != "model_name" && g.name != "model_name_or_path") continue;
    if (first && first->name != g.name)
      fail(first->where, str(g.where, " is given, too: they ask for different defaults"),
           "one of --model, --model_name, --model_name_or_path", "keep the one of the program whose defaults you want");
    first = &g;
  }
  if (!first) return "";
  return first->name == "model_name" ? "fsdp_qlora" : first->name == "model_name_or_path" ? "trl" : "tessera";
}

const Given* find_given(const std::vector<Given>& given, std::string_view name) {
  const auto it = std::find_if(given.rbegin(), given.rend(), [&](const Given& g) { return g.name == name; });
  return it == given.rend() ? nullptr : &*it;
}

// run.yaml as the one word, or --config run.yaml.
std::string config_file_of(const CommandLine& line) {
  const Given* config = find_given(line.given, "config");
  if (line.words.size() + (config ? 1 : 0) > 1 ||
      (!line.words.empty() && !ends_with(line.words[0], "ml") && !ends_with(line.words[0], ".json")))
    fail("tessera train", str("\"", line.words[0], "\" belongs to no option"), "options, as --name value, and one YAML file",
         "see tessera train --help");
  if (!line.words.empty()) return line.words[0];
  return config && !config->values.empty() ? config->values[0] : "";
}

void check_known(FieldList& fields, const std::vector<Given>& line) {
  std::vector<std::string> known = fields.names();
  for (const auto& name : upstream_names()) known.push_back(name);
  for (const auto& g : line)
    if (!fields.find(g.name) && !find_upstream_flag(g.name)) unknown_name(g, known);
}

// The configuration is written to tessera.yaml, checkpoints and adapter_config.json, where no secret may be.
void refuse_secrets(const FieldList& fields) {
  for (const auto& f : fields)
    if (has_secret(f.text()))
      fail(str("--", f.name()), "the value holds what looks like an access token or a password", "values that may be written to files",
           "leave it out, and make the token invalid if others may have seen it");
}

void note_repeated(FieldList& fields, const std::vector<Given>& line, Notices& notices) {
  for (size_t i = 0; i < line.size(); ++i)
    for (size_t j = i + 1; j < line.size(); ++j)
      if (const Field* f = fields.find(line[i].name); f && f->answers_to(line[j].name) && line[i].values != line[j].values)
        notices.push_back(str(line[i].where, " is given again: ", line[j].where, " ", join(line[j].values, " "), " counts"));
}

}  // namespace

std::string train_type_of(bool adapter, bool four_bit) { return !adapter ? "full" : four_bit ? "qlora" : "lora"; }

std::string choose_column(const std::vector<Given>& line, const std::vector<Given>& file) {
  for (const auto* place : {&line, &file})
    if (const Given* g = find_given(*place, "defaults"); g && g->values.size() == 1) return lower(g->values[0]);
  for (const auto* place : {&line, &file})
    if (const std::string column = column_of(*place); !column.empty()) return column;
  return "tessera";
}

void apply_given(FieldList& fields, const std::string& column, const std::vector<Given>& given) {
  for (auto& f : fields)
    if (const std::string text = f.default_of(column); text != f.text()) f.set({f.name(), str("--", f.name()), {text}});
  if (Field* f = fields.find("defaults")) f->set({f->name(), "--defaults", {column}});
  for (const auto& g : given)
    if (Field* f = fields.find(g.name)) f->set(g);
}

TrainArguments parse_train(const Arguments& args, bool without_rows) {
  TrainArguments out;
  Spelled spelled;
  out.config.device = "auto";
  FieldList fields = train_fields(out.config);
  add_spelled_fields(fields, spelled);
  const CommandLine line = read_command_line(args, fields);
  check_known(fields, line.given);
  const std::string path = config_file_of(line);
  std::vector<Given> all = path.empty() ? std::vector<Given>() : read_config_file(path, fields);
  const std::string column = choose_column(line.given, all);
  note_repeated(fields, line.given, out.notices);
  all.insert(all.end(), line.given.begin(), line.given.end());

  const Notices upstream = judge_upstream(all, fields);
  apply_given(fields, column, all);
  TrainConfig& c = out.config;
  const Said said(fields, all);
  if (column != "tessera")
    out.notices.insert(out.notices.begin(),
                       str("defaults of ", column, ", as ", said(said("defaults") ? "defaults" : "model")->where, " asks"));
  out.notices.insert(out.notices.end(), upstream.begin(), upstream.end());
  if (without_rows && c.dataset.empty()) c.dataset = "none";
  if (c.keep_layers != "auto" && (c.keep_layers.size() > 6 || c.keep_layers.find_first_not_of("0123456789") != std::string::npos))
    fail("--keep_layers", str("\"", c.keep_layers, "\""), "auto, or a number of layers from 0", "give one of them");
  resolve_train_type(c, spelled, said, out.notices);
  note_unused(c, fields, said, out.notices);
  resolve_device(c, spelled, said);
  note_offload(c, said, out.notices);
  if (has_adapter(c.train_type)) note_peft_example(all, said, out.notices);
  resolve_precision(c, spelled, said);
  resolve_clipping(c, spelled, said, out.notices);
  resolve_schedule(c, spelled, said, out.notices);
  resolve_strategies(c, spelled, said, out.notices);
  check_needed(fields);
  refuse_secrets(fields);
  out.world_size = std::max<int64_t>(0, spelled.world_size);
  return out;
}

std::string train_help(const Arguments& args) {
  TrainConfig config;
  config.device = "auto";
  Spelled spelled;
  FieldList fields = train_fields(config);
  add_spelled_fields(fields, spelled);
  Arguments rest;
  std::copy_if(args.begin(), args.end(), std::back_inserter(rest), [](const auto& a) { return a != "--help" && a != "-h"; });
  return help_text(fields, choose_column(read_command_line(rest, fields).given, {}));
}

}  // namespace tessera
