// Where the bytes of one target's input become files, in memory: /dev/shm/tessera-fuzz-PID-NAME, removed at the end of the process.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>

namespace tessera {

class InputFolder {
 public:
  explicit InputFolder(std::string_view name);
  InputFolder(const InputFolder&) = delete;
  InputFolder& operator=(const InputFolder&) = delete;
  ~InputFolder();
  const std::string& path() const { return path_; }
  std::string path(std::string_view name) const { return path_ + "/" + std::string(name); }
  std::string write(std::string_view name, std::string_view bytes) const;  // returns its path
  // The parts of the input, in order, as these files; a part that the input has not leaves no file. Parts end at a line "----".
  void write_parts(std::string_view input, std::initializer_list<std::string_view> names) const;

 private:
  std::string path_;
};

}  // namespace tessera
