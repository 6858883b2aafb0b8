// A folder with a tiny model (config.json only: its weights come from the seed), a tokenizer and rows, and runs of the program on it.
#pragma once
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "program.h"
#include "testing/golden.h"

namespace tessera {

// The value at a JSON pointer, as text: json_at(R"({"a": [1, "x"]})", "/a/0") is 1. "(none)" when there is no such value.
std::string json_at(const std::string& json, const std::string& pointer);
// The elements of an array of numbers.
std::vector<double> json_numbers(const std::string& json, const std::string& pointer);

// Every test starts with fresh files and may leave no process behind.
class Tiny : public testing::Test {
 protected:
  Tiny();
  ~Tiny() override;

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  // train on the rows of token ids, in fp32, into path(output). Later words win over these.
  Words training(const std::string& output, const Words& more = {}) const;
  // What must not depend on how a run was carried out: the hash of its result, and train.jsonl without times and memory.
  std::string outcome(const std::string& output, const std::string& file = "adapter_model.safetensors") const;
  // A model with weights and tokenizer, trained for some steps on rows of text.
  std::string trained_model() const;
  // SHA-256 of each file.
  std::map<std::string, std::string> files_of(const std::string& folder) const;
  // Waits for a file or folder of a run.
  void wait_for(Program&, const std::string& name) const;

 private:
  std::string folder_;
};

// Fails the test with what the program said, when it did not end well.
Ended well(const Ended& ended);
void expect_contains(const std::string& text, const std::string& part);

}  // namespace tessera
