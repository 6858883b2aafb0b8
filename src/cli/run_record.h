// The configuration of a run, kept in its output folder, so that generate and eval know which base an adapter was trained on.
#pragma once
#include <optional>
#include <string>

#include "cli/config.h"
#include "train/build.h"

namespace tessera {

inline constexpr const char* run_record_name = "tessera.yaml";

void write_run_record(const TrainConfig&, int ranks);  // to its output_dir; starts the same run again
// The run that wrote an adapter folder, or one of its checkpoints; nothing when no record is there.
std::optional<TrainConfig> recorded_run(const std::string& adapter);

// How eval and generate are told which model to load.
struct ModelChoice {
  std::string model, adapter;
  std::string precision;     // "": as the adapter's run, else the model's own
  std::string quant_format;  // "": as the adapter's run, else dense
  bool double_quant = true;
  int64_t threads = 0;
  std::string device = "auto";
};
void add_model_fields(FieldList&, ModelChoice&);
// Reads the record beside the adapter (or above its checkpoint folder) for what was not given.
ModelRequest choose_model(const ModelChoice&);

}  // namespace tessera
