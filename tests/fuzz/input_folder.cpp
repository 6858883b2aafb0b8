#include "input_folder.h"

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>

namespace tessera {
namespace {
constexpr std::string_view part_end = "\n----\n";
}

InputFolder::InputFolder(std::string_view name) {
  path_ = std::filesystem::exists("/dev/shm") ? "/dev/shm" : std::filesystem::temp_directory_path().string();
  path_ += "/tessera-fuzz-" + std::to_string(getpid()) + "-" + std::string(name);
  std::filesystem::create_directories(path_);
}

InputFolder::~InputFolder() {
  std::error_code none;
  std::filesystem::remove_all(path_, none);
}

std::string InputFolder::write(std::string_view name, std::string_view bytes) const {
  const std::string file = path(name);
  const int fd = open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0 || ::write(fd, bytes.data(), bytes.size()) != ssize_t(bytes.size())) std::abort();
  close(fd);
  return file;
}

void InputFolder::write_parts(std::string_view input, std::initializer_list<std::string_view> names) const {
  bool more = true;
  for (const std::string_view name : names) {
    if (!more) {
      unlink(path(name).c_str());
      continue;
    }
    const size_t end = input.find(part_end);
    write(name, input.substr(0, end));
    more = end != input.npos;
    if (more) input.remove_prefix(end + part_end.size());
  }
}

}  // namespace tessera
