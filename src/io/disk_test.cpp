// What faults of the disk leave of the files of this room: each change of each function is the last one before a crash, or fails.
#include "io/disk.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <functional>
#include <iostream>
#include <thread>

#include "io/file.h"
#include "io/safetensors.h"
#include "testing/faulty_disk.h"
#include "testing/test_folder.h"

namespace tessera {
namespace {

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// Every file below a folder, with its content.
std::string tree(const std::string& path) {
  std::string out;
  for (const std::string& name : list_folder(path)) {
    const std::string child = path + "/" + name;
    out += folder_exists(child) ? name + "/{" + tree(child) + "} " : name + ":" + read_file(child) + " ";
  }
  return out;
}

struct Action {
  const char* name;
  std::function<void(const TestFolder&)> prepare, act;
};
void PrintTo(const Action& a, std::ostream* out) { *out << a.name; }

void write_tensors(const TestFolder& f, float first) {
  const std::vector<float> a{first, 2, 3}, b(20, first);
  write_safetensors(f / "a.safetensors", {{"a", Dtype::f32, {3}, a.data()}, {"b", Dtype::f32, {4, 5}, b.data()}}, {{"format", "pt"}});
}

void make_two(const std::string& folder, const std::string& content) {
  make_folder(folder);
  write_file_atomic(folder + "/one", content);
  write_file_atomic(folder + "/two", content + content);
}

const std::string long_text(300, 'n');

std::vector<Action> actions() {
  const auto nothing = [](const TestFolder&) {};
  const auto old_file = [](const TestFolder& f) { write_file_atomic(f / "a", "old"); };
  const auto two_folders = [](const TestFolder& f) { make_two(f / "to", "old"), make_two(f / "from", "new"); };
  return {{"write_new", nothing, [](const TestFolder& f) { write_file_atomic(f / "a", long_text); }},
          {"write_over", old_file, [](const TestFolder& f) { write_file_atomic(f / "a", long_text); }},
          {"write_pieces", old_file,
           [](const TestFolder& f) {
             const std::span<const std::byte> pieces[] = {bytes_of("first, "), bytes_of("second, "), bytes_of(long_text)};
             write_file_atomic(f / "a", pieces);
           }},
          {"write_safetensors", [](const TestFolder& f) { write_tensors(f, 1); }, [](const TestFolder& f) { write_tensors(f, 7); }},
          {"copy", [](const TestFolder& f) { write_file_atomic(f / "a", "old"), write_file_atomic(f / "b", long_text); },
           [](const TestFolder& f) { copy_file_atomic(f / "b", f / "a"); }},
          {"rename_folder_new", [](const TestFolder& f) { make_two(f / "from", "new"); },
           [](const TestFolder& f) { rename_folder(f / "from", f / "to"); }},
          {"rename_folder_over", two_folders, [](const TestFolder& f) { rename_folder(f / "from", f / "to"); }},
          {"remove_all", [](const TestFolder& f) { make_two(f / "to", "old"), make_folder(f / "to/inner"); },
           [](const TestFolder& f) { remove_all(f / "to"); }},
          {"make_folder", nothing, [](const TestFolder& f) { make_folder(f / "a/b/c"); }}};
}

class Walk : public testing::TestWithParam<Action> {
 protected:
  Walk() {
    const TestFolder folder;
    GetParam().prepare(folder);
    before_ = tree(folder.path());
    GetParam().act(folder);
    after_ = tree(folder.path());
    EXPECT_NE(before_, after_);
  }

  // Old or new, whole: in a rename the new content may still be under its first name, and the old one gone.
  void expect_whole(const TestFolder& folder, const std::string& when) const {
    const std::string now = tree(folder.path());
    const std::string name = GetParam().name;
    const bool renames = name == "rename_folder_over" && now == "from/{one:old two:oldold } to/{one:new two:newnew } ";
    const bool makes = name == "make_folder" && (now == "a/{} " || now == "a/{b/{} } ");
    EXPECT_TRUE(now == before_ || now == after_ || renames || makes) << when << ": " << now;
  }

  // With and without an exchange of names, where there is one.
  static std::vector<bool> exchange_kinds() {
    return std::string(GetParam().name) == "rename_folder_over" ? std::vector<bool>{true, false} : std::vector<bool>{true};
  }

  std::string before_, after_;
};

// What survives a crash: everything (loss < 0), or what a loss of power leaves.
TEST_P(Walk, ACrashAtAnyChangeLeavesOldOrNew) {
  constexpr int losses = 12;
  int points = 0;
  for (const bool exchanges : exchange_kinds())
    for (const bool torn : {false, true})
      for (int loss = -1; loss < losses; ++loss) {
        bool crashed = true;
        for (int64_t k = 0; crashed; ++k) {
          const TestFolder folder;
          GetParam().prepare(folder);
          FaultyDisk disk(folder.path(), {.crash_at = k, .torn = torn, .exchanges = exchanges});
          try {
            GetParam().act(folder);
          } catch (const SimulatedCrash&) {
          }
          crashed = disk.crashed();
          points += crashed;
          disk.heal();
          if (loss >= 0) disk.lose_power(uint64_t(loss));
          recover_folder(folder.path());
          const std::string when = testing::PrintToString(k) + (torn ? " torn" : "") + " loss " + testing::PrintToString(loss);
          if (crashed) {
            expect_whole(folder, when);
          } else {
            EXPECT_EQ(tree(folder.path()), after_) << "returned, then lost: " << when;
          }
          ASSERT_LT(k, 100);
        }
      }
  std::cout << GetParam().name << ": " << points << " crashes\n";
}

TEST_P(Walk, AFailureAtAnyChangeLeavesOldOrNew) {
  for (const bool exchanges : exchange_kinds())
    for (const int error : {EIO, ENOSPC})
      for (int64_t k = 0;; ++k) {
        const TestFolder folder;
        GetParam().prepare(folder);
        FaultyDisk disk(folder.path(), {.fail_at = k, .error = error, .exchanges = exchanges});
        const std::string message = error_of([&] { GetParam().act(folder); });
        const bool failed = k < int64_t(disk.changes().size());
        disk.heal();
        const std::string when = testing::PrintToString(k) + " " + message;
        if (!failed) {
          EXPECT_EQ(tree(folder.path()), after_);
          break;
        }
        for (const char* part :
             {folder.path().c_str(), error == EIO ? "Input/output error" : "No space left on device", "allowed: ", "do this: "})
          EXPECT_NE(message.find(part), std::string::npos) << when;
        recover_folder(folder.path());
        expect_whole(folder, when);
      }
}

INSTANTIATE_TEST_SUITE_P(Changes, Walk, testing::ValuesIn(actions()), [](const auto& info) { return std::string(info.param.name); });

TEST(Disk, AFailedWriteRemovesItsTemporary) {
  const TestFolder folder;
  write_file_atomic(folder / "a", "old");
  for (int64_t k = 0; k < 4; ++k) {  // open, write, sync, close
    const FaultyDisk disk(folder.path(), {.fail_at = k, .error = EIO});
    EXPECT_NE(error_of([&] { write_file_atomic(folder / "a", "new"); }), "");
    EXPECT_EQ(tree(folder.path()), "a:old ") << k;
  }
}

TEST(Disk, ACrashCleansNothingUp) {
  const TestFolder folder;
  const FaultyDisk disk(folder.path(), {.crash_at = 1, .torn = true});
  EXPECT_THROW(write_file_atomic(folder / "a", "0123456789"), SimulatedCrash);
  EXPECT_THROW(remove_all(folder / "a.tmp-" + std::to_string(getpid())), SimulatedCrash);
  EXPECT_EQ(tree(folder.path()), "a.tmp-" + std::to_string(getpid()) + ":01234 ");
}

TEST(Disk, ShortAndInterruptedWritesAreContinued) {
  const TestFolder folder;
  const FaultyDisk disk(folder.path(), {.most_per_write = 7, .interrupted_every = 2});
  write_file_atomic(folder / "a", long_text);
  append_line(folder / "log", long_text);
  EXPECT_EQ(read_file(folder / "a"), long_text);
  EXPECT_EQ(read_file(folder / "log"), long_text + "\n");
  EXPECT_GT(disk.changes().size(), 2 * long_text.size() / 7);
}

TEST(Disk, AFullDiskIsNamedWithTheBytes) {
  const TestFolder folder;
  const FaultyDisk disk(folder.path(), {.fail_at = 1, .error = ENOSPC});
  const std::string message = error_of([&] { write_file_atomic(folder / "a", long_text); });
  EXPECT_NE(message.find("cannot write 300 bytes: No space left on device; "), std::string::npos) << message;
  EXPECT_NE(message.find(" bytes are free in its file system"), std::string::npos) << message;
}

TEST(Disk, ALineThatDoesNotFitIsTakenBack) {
  const TestFolder folder;
  append_line(folder / "log", "one");
  std::atomic<int> writes = 0;
  set_disk_hook({[&](const DiskCall& c) {
                   if (c.act != DiskAct::write) return DiskAnswer{};
                   return writes++ ? DiskAnswer{ENOSPC} : DiskAnswer{0, 2};
                 },
                 {}});
  const std::string message = error_of([&] { append_line(folder / "log", "two"); });
  set_disk_hook({});
  EXPECT_NE(message.find("No space left"), std::string::npos);
  EXPECT_EQ(read_file(folder / "log"), "one\n");
}

TEST(Disk, SyncedLinesSurviveALossOfPower) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const TestFolder folder;
    FaultyDisk disk(folder.path());
    append_line(folder / "log", "one");
    append_line(folder / "log", "two");
    sync_file(folder / "log");
    append_line(folder / "log", "three");
    disk.lose_power(seed);
    EXPECT_EQ(read_file(folder / "log").substr(0, 8), "one\ntwo\n");
  }
}

// The model itself: without the syncs, something is lost for some seed.
TEST(Disk, WhatIsNotSyncedCanBeLost) {
  int lost = 0, renamed_empty = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    const TestFolder folder;
    FaultyDisk disk(folder.path());
    DiskFile file(folder / "new", DiskFile::How::fresh);
    file.write(bytes_of("content"));
    file.close();
    disk_rename(folder / "new", folder / "a");
    disk.lose_power(seed);
    lost += !file_exists(folder / "a");
    renamed_empty += file_exists(folder / "a") && read_file(folder / "a") != "content";
  }
  EXPECT_GT(lost, 5);
  EXPECT_GT(renamed_empty, 5);
}

TEST(Disk, RecoversWhatAnotherProcessLeft) {
  const TestFolder folder;
  const std::string dead = "-999999999", alive = "-" + std::to_string(getppid());
  write_file_atomic(folder / ("a.tmp" + dead), "x");
  write_file_atomic(folder / ("b.tmp" + alive), "x");
  write_file_atomic(folder / "c.tmp-x", "x");
  make_two(folder / ("lost.old" + dead), "1");
  make_two(folder / ("kept.old" + dead), "1");
  make_two(folder / "kept", "2");
  make_two(folder / ("d.gone" + dead), "1");
  recover_folder(folder.path());
  EXPECT_EQ(list_folder(folder.path()), (std::vector<std::string>{"b.tmp" + alive, "c.tmp-x", "kept", "lost"}));
  EXPECT_EQ(read_file(folder / "kept/one"), "2");
  EXPECT_EQ(read_file(folder / "lost/one"), "1");
}

TEST(Disk, RemovesLinksAndNotWhatTheyPointTo) {
  const TestFolder folder;
  make_two(folder / "kept", "1");
  make_folder(folder / "gone");
  std::filesystem::create_directory_symlink(folder / "kept", folder / "gone/link");
  std::filesystem::create_directory_symlink(folder / "kept", folder / "link");
  remove_all(folder / "gone");
  remove_all(folder / "link");
  EXPECT_EQ(tree(folder.path()), "kept/{one:1 two:11 } ");
}

// Several threads write under one hook; every change is counted.
TEST(Disk, ThreadsShareTheHook) {
  const TestFolder folder;
  const FaultyDisk disk(folder.path(), {.pause = std::chrono::microseconds(20)});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 25; ++i) write_file_atomic(folder / std::to_string(t), std::to_string(i));
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(tree(folder.path()), "0:24 1:24 2:24 3:24 ");
  EXPECT_EQ(disk.changes().size(), 4u * 25 * 6);
}

}  // namespace
}  // namespace tessera
