#include "io/file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

TEST(File, WritesAndReads) {
  const TestFolder folder;
  write_file_atomic(folder / "a", "one");
  EXPECT_EQ(read_file(folder / "a"), "one");
  const std::span<const std::byte> pieces[] = {bytes_of("tw"), bytes_of(""), bytes_of("o, three")};
  write_file_atomic(folder / "a", pieces);
  EXPECT_EQ(read_file(folder / "a"), "two, three");
  write_file_atomic(folder / "empty", "");
  EXPECT_EQ(read_file(folder / "empty"), "");
  EXPECT_EQ(list_folder(folder.path()), (std::vector<std::string>{"a", "empty"}));
}

TEST(File, MapsWholeFiles) {
  const TestFolder folder;
  const std::string text(100'000, 'x');
  write_file_atomic(folder / "a", text);
  MappedFile file(folder / "a");
  ASSERT_EQ(file.size(), text.size());
  EXPECT_EQ(std::memcmp(file.data(), text.data(), text.size()), 0);
  file.drop(1, file.size());
  EXPECT_EQ(std::memcmp(file.data(), text.data(), text.size()), 0);

  MappedFile moved(std::move(file));
  EXPECT_EQ(moved.path(), folder / "a");
  EXPECT_EQ(moved.data()[99'999], std::byte('x'));
  write_file_atomic(folder / "empty", "");
  moved = MappedFile(folder / "empty");
  EXPECT_EQ(moved.size(), 0u);
}

TEST(File, ErrorsNameThePathAndTheReason) {
  const TestFolder folder;
  for (const std::string& error : {error_of([&] { MappedFile file(folder / "absent"); }), error_of([&] { read_file(folder / "absent"); }),
                                   error_of([&] { sha256_file(folder / "absent"); })}) {
    EXPECT_NE(error.find((folder / "absent") + ": cannot read: No such file"), std::string::npos) << error;
  }
  EXPECT_NE(error_of([&] { read_file(folder.path()); }).find("a folder"), std::string::npos);
  EXPECT_NE(error_of([&] { MappedFile file(folder.path()); }).find("a folder"), std::string::npos);
  EXPECT_NE(error_of([&] { make_folder("/proc/none/such"); }).find("/proc/none: cannot make"), std::string::npos);
  write_file_atomic(folder / "a", "");
  EXPECT_NE(error_of([&] { make_folder(folder / "a"); }).find("cannot make this folder"), std::string::npos);
}

TEST(File, FailedWritesKeepTheOldFile) {
  const TestFolder folder;
  EXPECT_NE(error_of([&] { write_file_atomic(folder / "none/a", "x"); }).find("No such file or directory"), std::string::npos);
  make_folder(folder / "a/inner");
  EXPECT_NE(error_of([&] { write_file_atomic(folder / "a", "x"); }).find("Is a directory"), std::string::npos);
  EXPECT_EQ(list_folder(folder.path()), std::vector<std::string>{"a"});

  write_file_atomic(folder / "b", "old");
  {
    AtomicFile file(folder / "b");
    file.write(bytes_of("half of the ne"));
    EXPECT_EQ(read_file(folder / "b"), "old");
  }
  EXPECT_EQ(read_file(folder / "b"), "old");
  EXPECT_EQ(list_folder(folder.path()), (std::vector<std::string>{"a", "b"}));
}

// A limit on the size of files stands for a full disk.
TEST(File, AFullDiskKeepsTheOldFile) {
  const TestFolder folder;
  write_file_atomic(folder / "a", "old");
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1 << 16, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string error = error_of([&] { write_file_atomic(folder / "a", std::string(1 << 20, 'x')); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(error.find("File too large"), std::string::npos) << error;
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_EQ(list_folder(folder.path()), std::vector<std::string>{"a"});
}

TEST(File, ReadOnlyFoldersKeepTheOldFile) {
  if (geteuid() == 0) GTEST_SKIP() << "skipped: root writes everywhere";
  const TestFolder folder;
  write_file_atomic(folder / "a", "old");
  chmod(folder.path().c_str(), 0555);
  const std::string error = error_of([&] { write_file_atomic(folder / "a", "new"); });
  chmod(folder.path().c_str(), 0755);
  EXPECT_NE(error.find("Permission denied"), std::string::npos) << error;
  EXPECT_EQ(read_file(folder / "a"), "old");
}

TEST(File, CopiesAndAppends) {
  const TestFolder folder;
  append_line(folder / "log", "one");
  append_line(folder / "log", "two");
  EXPECT_EQ(read_file(folder / "log"), "one\ntwo\n");
  copy_file_atomic(folder / "log", folder / "copy");
  EXPECT_EQ(read_file(folder / "copy"), "one\ntwo\n");
  write_file_atomic(folder / "empty", "");
  copy_file_atomic(folder / "empty", folder / "copy");
  EXPECT_EQ(read_file(folder / "copy"), "");
}

TEST(File, RenamedFoldersReplaceOldOnes) {
  const TestFolder folder;
  make_folder(folder / "new");
  write_file_atomic(folder / "new/a", "1");
  rename_folder(folder / "new", folder / "final");
  EXPECT_EQ(read_file(folder / "final/a"), "1");
  make_folder(folder / "new");
  write_file_atomic(folder / "new/b", "2");
  rename_folder(folder / "new", folder / "final/");
  EXPECT_EQ(list_folder(folder / "final"), std::vector<std::string>{"b"});
  EXPECT_EQ(list_folder(folder.path()), std::vector<std::string>{"final"});
  EXPECT_THROW(rename_folder(folder / "none", folder / "final"), Error);
  EXPECT_EQ(read_file(folder / "final/b"), "2");
}

TEST(File, Lists) {
  const TestFolder folder;
  for (const char* name : {"b", "a", "c"}) write_file_atomic(folder / name, "");
  make_folder(folder / "d/e/f");
  EXPECT_EQ(list_folder(folder.path()), (std::vector<std::string>{"a", "b", "c", "d"}));
  EXPECT_TRUE(list_folder(folder / "none").empty());
  EXPECT_TRUE(file_exists(folder / "a") && folder_exists(folder / "d/e/f"));
  EXPECT_FALSE(file_exists(folder / "d") || folder_exists(folder / "a") || file_exists(folder / "none"));
  remove_all(folder / "d");
  remove_all(folder / "none");
  EXPECT_FALSE(folder_exists(folder / "d"));
}

TEST(File, PartsOfPaths) {
  EXPECT_EQ(file_name("a/b/c.json"), "c.json");
  EXPECT_EQ(file_name("a/b/"), "b");
  EXPECT_EQ(file_name("c"), "c");
  EXPECT_EQ(file_name("/"), "");
  EXPECT_EQ(parent_folder("a/b/c.json"), "a/b");
  EXPECT_EQ(parent_folder("a//b/"), "a");
  EXPECT_EQ(parent_folder("c"), ".");
  EXPECT_EQ(parent_folder("/c"), "/");
  EXPECT_EQ(parent_folder("/"), "/");
}

// FIPS 180-4 examples.
TEST(File, Sha256) {
  EXPECT_EQ(sha256_hex({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256_hex(bytes_of("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256_hex(bytes_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  const std::string million(1'000'000, 'a');
  Sha256 hash;
  for (int i = 0; i < 10; ++i) hash.update(bytes_of(million).subspan(size_t(i) * 100'000, 100'000));
  EXPECT_EQ(hash.hex(), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  const TestFolder folder;
  write_file_atomic(folder / "a", million);
  EXPECT_EQ(sha256_file(folder / "a"), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

}  // namespace
}  // namespace tessera
