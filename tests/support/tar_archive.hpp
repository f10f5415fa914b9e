// SPDX-License-Identifier: MIT
// Writes small .tar.gz files, good ones and bad ones, byte by byte: the archive under test is not made by the code
// under test.
#pragma once

#include <zlib.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>

namespace pardl::testing {

class TarArchive {
 public:
  // One entry; `type` as in the format: '0' file, '5' folder, '1' and '2' links, 'L' GNU long name, 'x' pax.
  TarArchive& add(std::string_view name, std::string_view contents = {}, char type = '0', std::string_view link = {},
                  std::string_view prefix = {}) {
    std::string header(512, '\0');
    header.replace(0, name.size(), name);
    header.replace(100, 8, octal(0644, 7));
    header.replace(124, 12, octal(contents.size(), 11));
    header.replace(136, 12, octal(0, 11));
    header[156] = type;
    header.replace(157, link.size(), link);
    header.replace(257, 8,
                   std::string_view("ustar\0"
                                    "00",
                                    8));
    header.replace(345, prefix.size(), prefix);
    seal(header);
    bytes_ += header;
    bytes_ += contents;
    bytes_.append((512 - contents.size() % 512) % 512, '\0');
    return *this;
  }
  TarArchive& add_pax(std::string_view key, std::string_view value) {
    std::string const rest = " " + std::string(key) + "=" + std::string(value) + "\n";
    std::size_t length = rest.size() + 1;
    while (std::to_string(length).size() + rest.size() != length) ++length;
    return add("pax", std::to_string(length) + rest, 'x');
  }
  std::string& bytes() { return bytes_; }

  // The end mark and the compression.
  void write(std::filesystem::path const& path) const { write_gzip(path, bytes_ + std::string(1024, '\0')); }

  static void write_gzip(std::filesystem::path const& path, std::string const& bytes) {
    gzFile const file = gzopen(path.c_str(), "wb");
    gzwrite(file, bytes.data(), static_cast<unsigned>(bytes.size()));
    gzclose(file);
  }
  static std::string octal(std::size_t value, int digits) {
    char text[32];
    std::snprintf(text, sizeof text, "%0*zo", digits, value);
    return std::string(text) + '\0';
  }
  // Sets a header's checksum.
  static void seal(std::string& header) {
    header.replace(148, 8, 8, ' ');
    std::size_t sum = 0;
    for (char const c : header) sum += static_cast<unsigned char>(c);
    header.replace(148, 8, octal(sum, 6) + ' ');
  }

 private:
  std::string bytes_;
};

}  // namespace pardl::testing
