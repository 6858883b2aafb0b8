// Zip archives without compression, as torch.save writes them. Source: PKWARE, APPNOTE.TXT 6.3 (4.3.7, 4.3.12 to 4.3.16), with zip64.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace tessera {

struct ZipMember {
  std::span<const std::byte> bytes;
  uint32_t crc32 = 0;  // as the archive says; not compared
};

// The members by name; they point into `archive`, which begins with the first member and ends with the directory. Throws Error naming
// `where`: compressed members, names that come twice, places outside the archive, an archive that is cut off.
std::map<std::string, ZipMember> read_stored_zip(std::span<const std::byte> archive, const std::string& where);

// The CRC-32 of zip and gzip (reflected polynomial 0xedb88320) of bytes that may come in pieces: start with 0.
uint32_t crc32(uint32_t so_far, std::span<const std::byte> bytes);

}  // namespace tessera
