// Every file of the corpus through its reader, with the ordinary compiler: what fuzzing has found stays found.
#include <gtest/gtest.h>

#include "core/log.h"
#include "core/text.h"
#include "io/file.h"
#include "targets.h"

// TESSERA_CORPUS is given to this file by the build.

namespace tessera {
namespace {

class Replay : public testing::TestWithParam<FuzzTarget> {};

TEST_P(Replay, ReturnsOrThrowsError) {
  set_log_rank(1, 2);
  const std::string folder = str(TESSERA_CORPUS, "/", GetParam().name);
  const std::vector<std::string> names = list_folder(folder);
  EXPECT_GE(names.size(), 3u) << folder;
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    EXPECT_NO_THROW(run_fuzz_target(GetParam(), read_file(str(folder, "/", name))));
  }
}

INSTANTIATE_TEST_SUITE_P(Corpus, Replay, testing::ValuesIn(fuzz_targets().begin(), fuzz_targets().end()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Replay, EveryCorpusFolderHasATarget) {
  for (const std::string& name : list_folder(TESSERA_CORPUS)) {
    bool found = false;
    for (const FuzzTarget& target : fuzz_targets()) found = found || target.name == name;
    EXPECT_TRUE(found) << name;
  }
}

}  // namespace
}  // namespace tessera
