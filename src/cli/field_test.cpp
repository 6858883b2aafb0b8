#include "cli/field.h"

#include <gtest/gtest.h>

#include <map>

#include "core/error.h"

namespace tessera {
namespace {

// The message of the error that f throws, or "" when it throws none.
template <class F>
std::string message(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

void expect_parts(const std::string& text, const std::vector<std::string>& parts) {
  for (const auto& part : parts) EXPECT_NE(text.find(part), std::string::npos) << "\"" << part << "\" is not in:\n" << text;
}

TEST(Field, ReadsEveryKindOfValue) {
  bool flag = false;
  int64_t whole = 0;
  uint64_t natural = 0;
  double real = 0;
  std::string text;
  FieldList fields("test", "");
  fields.add("flag", &flag, ""), fields.add("whole", &whole, ""), fields.add("natural", &natural, "").from(0);
  fields.add("real", &real, ""), fields.add("text", &text, "");
  auto set = [&](const char* name, std::vector<std::string> values) { fields.find(name)->set({name, "--x", std::move(values)}); };
  set("flag", {});
  EXPECT_TRUE(flag);
  for (const auto& [word, meaning] : std::map<std::string, bool>{{"false", false},
                                                                 {"False", false},
                                                                 {"no", false},
                                                                 {"0", false},
                                                                 {"off", false},
                                                                 {"true", true},
                                                                 {"True", true},
                                                                 {"yes", true},
                                                                 {"1", true},
                                                                 {"on", true},
                                                                 {"Y", true}}) {
    flag = !meaning;
    set("flag", {word});
    EXPECT_EQ(flag, meaning) << word;
  }
  set("whole", {"1e3"});
  set("natural", {"9007199254740992"});
  set("real", {"2e-4"});
  set("text", {"a b"});
  EXPECT_EQ(whole, 1000);
  EXPECT_EQ(natural, 9007199254740992u);
  EXPECT_EQ(real, 2e-4);
  EXPECT_EQ(text, "a b");
  set("whole", {"-12"});
  set("real", {".5"});
  EXPECT_EQ(whole, -12);
  EXPECT_EQ(real, 0.5);
}

TEST(Field, ListsAreNamesOrOneExpression) {
  std::vector<std::string> list;
  FieldList fields("test", "");
  Field& f = fields.add("list", &list, "");
  const std::vector<std::string> two = {"q_proj", "v_proj"};
  f.set({"list", "--list", {"q_proj, v_proj"}});
  EXPECT_EQ(list, two);
  f.set({"list", "--list", {"q_proj", "v_proj"}});
  EXPECT_EQ(list, two);
  const std::string expression = R"(model\.layers\.\d{1,2}\.(q|v)_proj)";
  f.set({"list", "--list", {expression}});
  EXPECT_EQ(list, std::vector<std::string>{expression});
}

TEST(Field, RefusesWhatIsNoPlainNumber) {
  int64_t whole = 7;
  double real = 7;
  FieldList fields("test", "");
  fields.add("whole", &whole, ""), fields.add("real", &real, "");
  for (const char* bad : {"", "1x", "1.5", "1e-3", "0x10", "1_000", "inf", "nan", "--", "1e300"})
    EXPECT_THROW(fields.find("whole")->set({"whole", "--whole", {bad}}), Error) << bad;
  for (const char* bad : {"", "1e-4x", "inf", "nan", "1,5"})
    EXPECT_THROW(fields.find("real")->set({"real", "--real", {bad}}), Error) << bad;
  EXPECT_EQ(whole, 7);
  EXPECT_EQ(real, 7);
}

TEST(Field, HoldsItsLimits) {
  double share = 0;
  int64_t steps = -1;
  FieldList fields("test", "");
  Field& s = fields.add("share", &share, "").from(0).below(1);
  Field& n = fields.add("steps", &steps, "").from(1).or_value(-1);
  EXPECT_EQ(s.allowed(), "a number from 0 below 1");
  EXPECT_EQ(n.allowed(), "a whole number from 1, or -1");
  EXPECT_NO_THROW(s.set({"share", "--share", {"0"}}));
  EXPECT_THROW(s.set({"share", "--share", {"1"}}), Error);
  EXPECT_NO_THROW(n.set({"steps", "--steps", {"-1"}}));
  EXPECT_THROW(n.set({"steps", "--steps", {"0"}}), Error);
  expect_parts(message([&] {
                 s.set({"share", "--the-share", {"1.5"}});
               }),
               {"--the-share: \"1.5\"", "allowed: a number from 0 below 1", "do this:"});
}

TEST(Field, ChoicesAreMappedProposedOrNotYet) {
  std::string value = "adamw";
  FieldList fields("test", "");
  Field& f = fields.add("optimizer", &value, "").also({"optim"}).one_of({"adamw"}).means("adamw", {"adamw_torch"}).not_yet({"sgd"});
  f.set({"optim", "--optim", {"adamw_torch"}});
  EXPECT_EQ(value, "adamw");
  expect_parts(message([&] { f.set({"optim", "--optim", {"sgd"}}); }), {"--optim", "sgd", "not yet", "allowed: adamw"});
  expect_parts(message([&] { f.set({"optim", "--optim", {"adanw"}}); }), {"--optim", "adanw", "write adamw"});
  EXPECT_EQ(fields.find("optim"), &f);
  EXPECT_EQ(fields.find("opt"), nullptr);
}

TEST(Field, OneValueIsWanted) {
  std::string text;
  FieldList fields("test", "");
  Field& f = fields.add("text", &text, "");
  expect_parts(message([&] { f.set({"text", "--text", {}}); }), {"--text: no value is given"});
  expect_parts(message([&] { f.set({"text", "--text", {"a", "b"}}); }), {"--text: several values are given: a b"});
}

}  // namespace
}  // namespace tessera
