// Where a data set's file is. Names of fsdp_qlora (alpaca, guanaco, ...) mean files on this machine; nothing is downloaded.
#pragma once
#include <string>

namespace tessera {

// `dataset` as a path, else NAME, NAME.json, NAME.jsonl in the working folder, in data/, in $TESSERA_DATA (and alpaca's usual file names).
// Throws Error that lists the places looked at; also for files of a kind that is not read yet (.gz, .csv, .parquet, .arrow).
std::string find_dataset(const std::string& dataset);

}  // namespace tessera
