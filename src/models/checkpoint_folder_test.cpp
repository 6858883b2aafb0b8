// Model folders: what must be refused is refused with the file, the tensor or the key; what must load loads.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/text.h"
#include "models/load.h"
#include "testing/golden.h"

namespace tessera {
namespace {

// What loading a folder says; "" when it is fine.
std::string refusal(const std::string& folder) {
  try {
    const ModelConfig config = read_model_config(folder);
    check_checkpoint(config, TensorFiles::open(folder));
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(BrokenFolders, AreRefusedWithTheirFault) {
  NEEDS_SHARED();
  int refused = 0, loaded = 0;
  const auto facts = nlohmann::ordered_json::parse(shared_text("golden/models/broken/broken.json"));
  for (const auto& c : facts.at("cases")) {
    const std::string name = c.at("folder").get<std::string>(), said = refusal(shared("golden/models/broken/" + name));
    if (c.at("must") == "load") {
      EXPECT_EQ(said, "") << name;
      ++loaded;
      continue;
    }
    EXPECT_NE(said, "") << name << " was loaded: " << c.at("fault");
    EXPECT_NE(said.find("do this"), std::string::npos) << name << ": " << said;
    for (const auto& word : c.value("error_must_name", nlohmann::ordered_json::array()))
      EXPECT_NE(said.find(word.get<std::string>()), std::string::npos) << name << " does not name " << word << ":\n" << said;
    ++refused;
  }
  EXPECT_EQ(refused, 41);
  EXPECT_EQ(loaded, 6);
}

TEST(ModelFolder, AbsentFolderIsNamed) { EXPECT_NE(refusal("/nowhere/model").find("/nowhere/model"), std::string::npos); }

// Every shape of a supported family is read, and its parameter count is the published one.
TEST(ModelFolder, ShapesOfRealModels) {
  NEEDS_SHARED();
  const std::pair<const char*, int64_t> models[] = {{"smollm_135m", 134515008},   {"llama32_1b", 1235814400}, {"llama2_7b", 6738415616},
                                                    {"llama31_70b", 70553706496}, {"mistral_7b", 7241732096}, {"qwen25_7b", 7615616512}};
  for (const auto& [name, parameters] : models) {
    const ModelConfig config = read_model_config(shared(str("models/shapes/", name)));
    EXPECT_EQ(config.parameters(), parameters) << name;
    if (parameters > 2000000000) continue;
    int64_t counted = 0;
    for (const auto& unit : make_model(config, {}).units)
      for (const auto& part : unit.parts) counted += part.shape.size();
    EXPECT_EQ(counted, parameters) << name;
  }
}

}  // namespace
}  // namespace tessera
