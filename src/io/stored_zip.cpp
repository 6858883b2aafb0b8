#include "io/stored_zip.h"

#include <array>
#include <cstring>

#include "core/error.h"
#include "core/text.h"

namespace tessera {
namespace {

constexpr size_t end_bytes = 22, end64_bytes = 56, locator_bytes = 20, entry_bytes = 46, local_bytes = 30;
constexpr uint32_t end_mark = 0x06054b50, end64_mark = 0x06064b50, locator_mark = 0x07064b50, entry_mark = 0x02014b50,
                   local_mark = 0x04034b50;
constexpr uint32_t in_zip64 = 0xffffffff;
constexpr uint64_t max_members = 1u << 20, max_name = 1u << 10;

struct Archive {
  std::span<const std::byte> bytes;
  const std::string& where;

  [[noreturn]] void damaged(const std::string& what) const {
    fail(where, what, "a whole archive as torch.save writes it", "copy the checkpoint again; it is cut off or damaged");
  }
  // `count` bytes at `at`, which must lie inside.
  std::span<const std::byte> part(uint64_t at, uint64_t count) const {
    if (at > bytes.size() || count > bytes.size() - at) damaged(str("bytes ", at, " to ", at, " + ", count, " of ", bytes.size()));
    return bytes.subspan(size_t(at), size_t(count));
  }
  template <class T>
  T read(uint64_t at) const {
    T value;
    std::memcpy(&value, part(at, sizeof value).data(), sizeof value);
    return value;
  }
  std::string text(uint64_t at, uint64_t count) const {
    const auto from = part(at, count);
    return {reinterpret_cast<const char*>(from.data()), from.size()};
  }
};

struct Directory {
  uint64_t begin = 0, members = 0;
};

Directory find_directory(const Archive& a) {
  if (a.bytes.size() < end_bytes) a.damaged(str("an archive of ", a.bytes.size(), " bytes"));
  const uint64_t end = a.bytes.size() - end_bytes;
  if (a.read<uint32_t>(end) != end_mark) a.damaged("no zip directory at the end");
  Directory d{a.read<uint32_t>(end + 16), a.read<uint16_t>(end + 10)};
  if (end >= locator_bytes && a.read<uint32_t>(end - locator_bytes) == locator_mark) {
    const auto end64 = a.read<uint64_t>(end - locator_bytes + 8);
    if (a.part(end64, end64_bytes).empty() || a.read<uint32_t>(end64) != end64_mark) a.damaged("no zip64 directory where it should be");
    d = {a.read<uint64_t>(end64 + 48), a.read<uint64_t>(end64 + 32)};
  }
  if (d.members > max_members) a.damaged(str("an archive of ", d.members, " members"));
  return d;
}

struct Entry {
  uint64_t bytes = 0, stored = 0, local = 0;
};

// The 64-bit numbers of an entry that has 0xffffffff in their places, in this order (4.5.3).
void read_zip64(const Archive& a, uint64_t extra, uint64_t extra_bytes, Entry& e) {
  const uint64_t end = extra + extra_bytes;
  for (uint64_t at = extra; end - at >= 4;) {
    const uint16_t id = a.read<uint16_t>(at), size = a.read<uint16_t>(at + 2);
    at += 4;
    if (size > end - at) a.damaged("an extra field that leaves its entry");
    if (id == 1) {
      uint64_t next = at;
      for (uint64_t* value : {&e.bytes, &e.stored, &e.local}) {
        if (*value != in_zip64) continue;
        if (next + 8 > at + size) a.damaged("a zip64 field that is too short");
        *value = a.read<uint64_t>(next);
        next += 8;
      }
    }
    at += size;
  }
}

// The member's bytes lie behind its local header, which has a name and extra bytes of its own.
std::span<const std::byte> member_bytes(const Archive& a, const Entry& e, const std::string& name) {
  if (a.part(e.local, local_bytes).empty() || a.read<uint32_t>(e.local) != local_mark) a.damaged(str("no header of member ", name));
  const uint64_t name_bytes = a.read<uint16_t>(e.local + 26), extra_bytes = a.read<uint16_t>(e.local + 28);
  if (a.text(e.local + local_bytes, name_bytes) != name) a.damaged(str("another name in the header of member ", name));
  return a.part(e.local + local_bytes + name_bytes + extra_bytes, e.bytes);
}

constexpr std::array<std::array<uint32_t, 256>, 8> crc_tables() {
  std::array<std::array<uint32_t, 256>, 8> t{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = c >> 1 ^ (c & 1 ? 0xedb88320u : 0);
    t[0][i] = c;
  }
  for (uint32_t i = 0; i < 256; ++i)
    for (size_t k = 1; k < 8; ++k) t[k][i] = t[0][t[k - 1][i] & 255] ^ t[k - 1][i] >> 8;
  return t;
}

}  // namespace

std::map<std::string, ZipMember> read_stored_zip(std::span<const std::byte> archive, const std::string& where) {
  const Archive a{archive, where};
  const Directory directory = find_directory(a);
  std::map<std::string, ZipMember> members;
  uint64_t at = directory.begin;
  for (uint64_t i = 0; i < directory.members; ++i) {
    if (a.part(at, entry_bytes).empty() || a.read<uint32_t>(at) != entry_mark) a.damaged("a zip directory that ends too early");
    const uint64_t name_bytes = a.read<uint16_t>(at + 28), extra = a.read<uint16_t>(at + 30), comment = a.read<uint16_t>(at + 32);
    if (name_bytes > max_name) a.damaged(str("a member's name of ", name_bytes, " bytes"));
    const std::string name = a.text(at + entry_bytes, name_bytes);
    Entry e{a.read<uint32_t>(at + 24), a.read<uint32_t>(at + 20), a.read<uint32_t>(at + 42)};
    read_zip64(a, at + entry_bytes + name_bytes, extra, e);
    if (a.read<uint16_t>(at + 10) != 0 || e.bytes != e.stored)
      fail(where, str("member ", name, " is compressed"), "members as they are (zip method 0), as torch.save writes them",
           "save the checkpoint with torch.save");
    if (!members.insert({name, {member_bytes(a, e, name), a.read<uint32_t>(at + 16)}}).second) a.damaged(str("member ", name, " twice"));
    at += entry_bytes + name_bytes + extra + comment;
  }
  return members;
}

// Eight bytes at a time. Source: Intel, "A Systematic Approach to Building High Performance Software-based CRC Generators" (slicing by 8).
uint32_t crc32(uint32_t so_far, std::span<const std::byte> bytes) {
  static constexpr auto t = crc_tables();
  uint32_t c = ~so_far;
  size_t i = 0;
  for (; i + 8 <= bytes.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + i, 8);
    word ^= c;
    c = 0;
    for (size_t k = 0; k < 8; ++k) c ^= t[7 - k][word >> 8 * k & 255];
  }
  for (; i < bytes.size(); ++i) c = t[0][(c ^ uint32_t(bytes[i])) & 255] ^ c >> 8;
  return ~c;
}

}  // namespace tessera
