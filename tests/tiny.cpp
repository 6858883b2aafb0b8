#include "tiny.h"

#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "core/text.h"
#include "io/file.h"

namespace tessera {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* config = R"({"model_type": "llama", "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 64, "tie_word_embeddings": true, "rms_norm_eps": 1e-5,
  "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2})";

std::string id_rows() {
  std::string rows;
  for (int i = 0; i < 23; ++i) {
    rows += "{\"input_ids\": [1";
    for (int t = 0; t < 5 + (i * 7) % 11; ++t) rows += str(", ", 2 + (i * 5 + t * 3) % 60);
    rows += "]}\n";
  }
  return rows;
}

std::string text_rows() {
  std::string rows;
  for (const char* animal : {"cat", "dog", "cow", "duck", "hen", "fox"})
    for (const char* place : {"barn", "pond", "field"}) rows += str("{\"text\": \"the ", animal, " is in the ", place, ".\"}\n");
  return rows;
}

// 64 tokens: specials, the mark of a space, letters, "▁a" to "▁z" by merges, signs.
std::string tokenizer() {
  Json vocab, merges = Json::array();
  const std::string space = "▁";
  for (const char* token : {"<unk>", "<s>", "</s>"}) vocab[token] = vocab.size();
  vocab[space] = vocab.size();
  for (char c = 'a'; c <= 'z'; ++c) vocab[std::string(1, c)] = vocab.size();
  for (char c = 'a'; c <= 'z'; ++c) vocab[space + c] = vocab.size(), merges.push_back(space + " " + c);
  for (const char* token : {".", ",", "!", "?", "-", ":", "#", "1"}) vocab[token] = vocab.size();
  const Json rest = Json::parse(R"({
    "added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 1, "content": "<s>", "special": true},
                     {"id": 2, "content": "</s>", "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
                   {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": null,
    "post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}, {"Sequence": {"id": "A"}}],
                       "special_tokens": {"<s>": {"ids": [1]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}})");
  Json all = rest;
  all["model"] = {{"type", "BPE"}, {"unk_token", "<unk>"}, {"vocab", vocab}, {"merges", merges}};
  return all.dump();
}

}  // namespace

std::string json_at(const std::string& json, const std::string& pointer) {
  const Json value = Json::parse(json, nullptr, false);
  const Json::json_pointer place(pointer);
  return value.is_structured() && value.contains(place) ? value[place].dump() : "(none)";
}

std::vector<double> json_numbers(const std::string& json, const std::string& pointer) {
  return Json::parse(json).at(Json::json_pointer(pointer)).get<std::vector<double>>();
}

Tiny::Tiny() {
  std::string pattern = (std::filesystem::temp_directory_path() / "tessera_e2e_XXXXXX").string();
  folder_ = ::mkdtemp(pattern.data());
  make_folder(path("model"));
  write_file_atomic(path("model/config.json"), config);
  write_file_atomic(path("model/tokenizer.json"), tokenizer());
  write_file_atomic(path("rows.jsonl"), id_rows());
  write_file_atomic(path("text.jsonl"), text_rows());
}

Tiny::~Tiny() {
  for (int tries = 0; tries < 100 && !processes_with(folder_).empty(); ++tries) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  for (const pid_t id : processes_with(folder_)) {
    ADD_FAILURE() << "process " << id << " was left behind";
    kill(id, SIGKILL);
  }
  std::filesystem::remove_all(folder_);
}

Words Tiny::training(const std::string& output, const Words& more) const {
  return Words{"train",
               "--model",
               path("model"),
               "--dataset",
               path("rows.jsonl"),
               "--init",
               "random",
               "--precision",
               "fp32",
               "--lora_rank",
               "3",
               "--lora_dropout",
               "0.1",
               "--batch_size",
               "2",
               "--max_steps",
               "4",
               "--lr",
               "1e-2",
               "--logging_steps",
               "100",
               "--threads",
               "1",
               "--output_dir",
               path(output)} +
         more;
}

std::string Tiny::outcome(const std::string& output, const std::string& file) const {
  std::string text = str(sha256_file(path(output + "/" + file)), "\n");
  std::istringstream lines(read_file(path(output + "/train.jsonl")));
  for (std::string line; std::getline(lines, line);) {
    Json step = Json::parse(line);
    if (step.contains("save_stall_seconds")) continue;
    for (const char* key : {"seconds", "tokens_per_second", "memory", "memory_peak"}) step.erase(key);
    text += step.dump() + "\n";
  }
  return text;
}

std::string Tiny::trained_model() const {
  well(run(tessera(
      {"train",       "--model",      path("model"),  "--dataset", path("text.jsonl"), "--init", "random", "--train_type", "full",
       "--precision", "fp32",         "--batch_size", "6",         "--max_steps",      "30",     "--lr",   "1e-2",         "--threads",
       "1",           "--output_dir", path("trained")})));
  return path("trained");
}

std::map<std::string, std::string> Tiny::files_of(const std::string& folder) const {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) files[entry.path()] = sha256_file(entry.path());
  return files;
}

void Tiny::wait_for(Program& program, const std::string& name) const {
  for (int tries = 0; tries < 10000 && program.running() && !std::filesystem::exists(path(name)); ++tries)
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
  EXPECT_TRUE(std::filesystem::exists(path(name))) << name << " did not appear";
}

Ended well(const Ended& ended) {
  EXPECT_EQ(ended.code, 0) << ended.err;
  return ended;
}

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in:\n" << text;
}

}  // namespace tessera
