// A fresh folder for one test, removed with its content. For *_test.cpp only.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

#include "core/text.h"
#include "io/file.h"

namespace tessera {

class TestFolder {
 public:
  TestFolder() {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    path_ = str(testing::TempDir(), "tessera_", test->test_suite_name(), "_", test->name(), "_", getpid());
    remove_all(path_);
    make_folder(path_);
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  ~TestFolder() { remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace tessera
