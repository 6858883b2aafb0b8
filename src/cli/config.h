// The configuration of a run, from the command line and a YAML file to TrainConfig. Three programs are understood: Tessera, fsdp_qlora
// and Hugging Face's (TRL, transformers, PEFT's example). They disagree on defaults, so a default has three columns; one rule,
// choose_column, picks the column, and no other code asks which program's spelling was used.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "train/config.h"

namespace tessera {

// What `tessera train` was asked to do.
struct TrainArguments {
  TrainConfig config;
  int64_t world_size = 0;            // --world_size: ranks asked for; 0: not said
  std::vector<std::string> notices;  // to be said once, by rank 0: the column taken, what had no effect
};

// Order of power: command line, --config file, defaults of the column. Throws Error naming the flag as typed, or file and line.
// without_rows: a plan needs no dataset.
TrainArguments parse_train(const Arguments&, bool without_rows = false);

// What `tessera train --help` prints, with the defaults of the column that the other arguments choose.
std::string train_help(const Arguments&);

// --model_name: fsdp_qlora; --model_name_or_path: trl; --model, or none of them: tessera. --defaults NAME decides before that, and the
// command line before the file. Several of the three in one place are an error.
std::string choose_column(const std::vector<Given>& line, const std::vector<Given>& file);

// Sets every field to its default in the column, then to what was given, the last one winning; names of no field are left alone.
void apply_given(FieldList&, const std::string& column, const std::vector<Given>& given);

// The train_type of a command line that has only switches: an adapter or not, a 4-bit base or not.
std::string train_type_of(bool adapter, bool four_bit);

FieldList train_fields(TrainConfig&);            // every member of TrainConfig
void add_data_fields(FieldList&, TrainConfig&);  // the part that says which model and rows
void add_device_field(FieldList&, std::string& device);

// The keys of a YAML (or JSON) file. A key of a nested map is joined to its parent's: lora: {rank: 8} is lora_rank. Throws Error naming
// file and line for what cannot be read and for keys that are no field and no upstream flag.
std::vector<Given> read_config_file(const std::string& path, FieldList&);

std::string to_yaml(const TrainConfig&);                          // reads back as the same configuration
std::map<std::string, std::string> to_texts(const TrainConfig&);  // every field by name
std::string to_json(const TrainConfig&);                          // one object, on one line

}  // namespace tessera
