// Golden files under ../shared: present on the developers' machines, absent elsewhere. For *_test.cpp only.
#pragma once
#include <gtest/gtest.h>

#include <string>

namespace tessera {

// Path of a file or folder under ../shared, e.g. shared("golden/quant/bnb_4bit/random.json").
std::string shared(const std::string& relative);
bool have_shared();

}  // namespace tessera

// First line of a test that reads ../shared.
#define NEEDS_SHARED() \
  if (!tessera::have_shared()) GTEST_SKIP() << "skipped: no ../shared"
