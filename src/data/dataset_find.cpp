#include "data/dataset_find.h"

#include <cstdlib>
#include <vector>

#include "core/error.h"
#include "core/text.h"
#include "io/file.h"

namespace tessera {
namespace {

constexpr const char* alpaca_files[] = {"alpaca_data_cleaned.json", "alpaca_cleaned.json"};

std::vector<std::string> file_names_of(const std::string& dataset) {
  std::vector<std::string> names = {dataset, dataset + ".json", dataset + ".jsonl"};
  if (dataset == "alpaca_sample") names.insert(names.end(), {"alpaca", "alpaca.json", "alpaca.jsonl"});
  if (dataset == "alpaca" || dataset == "alpaca_sample") names.insert(names.end(), std::begin(alpaca_files), std::end(alpaca_files));
  return names;
}

void refuse_unread_kinds(const std::string& path) {
  constexpr std::pair<const char*, const char*> kinds[] = {{".gz", "unpack it with gunzip"},
                                                           {".csv", "convert it to JSONL"},
                                                           {".parquet", "convert it to JSONL"},
                                                           {".arrow", "convert it to JSONL"}};
  for (const auto& [ending, remedy] : kinds)
    if (ends_with(lower(path), ending)) fail(path, str("files ending in ", ending, " are not read yet"), ".json, .jsonl", remedy);
}

}  // namespace

std::string find_dataset(const std::string& dataset) {
  if (dataset.empty()) fail("dataset", "no name given", "a .json or .jsonl file, or a known name", "give --dataset PATH");
  refuse_unread_kinds(dataset);
  std::vector<std::string> folders = {"", "data/"};
  const char* more = std::getenv("TESSERA_DATA");
  if (more && *more) folders.push_back(str(more, "/"));
  if (dataset.front() == '/') folders = {""};
  std::vector<std::string> looked;
  for (const std::string& folder : folders)
    for (const std::string& name : file_names_of(dataset)) {
      const std::string path = folder + name;
      if (file_exists(path)) return path;
      looked.push_back(folder_exists(path) ? path + " (a folder)" : path);
    }
  fail(str("dataset ", dataset), str("no such file; looked at ", join(looked, ", ")),
       "a .json or .jsonl file on this machine, or dummy, which needs none",
       "give the path of the file, --dataset PATH, or put it into one of these places or into a folder named by TESSERA_DATA");
}

}  // namespace tessera
