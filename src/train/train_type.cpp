#include "train/train_type.h"

#include <array>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {
constexpr std::array types{
    TrainType{"full", false, false, false}, TrainType{"lora", false, true, false},       TrainType{"custom_lora", false, true, true},
    TrainType{"qlora", true, true, false},  TrainType{"custom_qlora", true, true, true},
};
}  // namespace

std::vector<std::string> train_type_names() {
  std::vector<std::string> names;
  for (const TrainType& t : types) names.emplace_back(t.name);
  return names;
}

const TrainType& find_train_type(std::string_view name) {
  for (const TrainType& t : types)
    if (t.name == name) return t;
  const std::string near = nearest(name, train_type_names());
  fail(str("--train_type ", name), near.empty() ? "is not known" : str("is not known; did you mean ", near, "?"),
       join(train_type_names(), ", "), "choose one of them");
}

}  // namespace tessera
