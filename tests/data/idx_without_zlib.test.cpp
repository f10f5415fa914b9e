// SPDX-License-Identifier: MIT
// A unit built without pardl::data, in one program with others that are built with it: each keeps its own reader.
#undef PARDL_WITH_ZLIB
#include <doctest/doctest.h>

#include <string>

#include "pardl/data/idx.hpp"
#include "support/temporary_folder.hpp"

TEST_CASE("without zlib a plain file is read, and a gzip file is refused with the name of the target to link") {
  pardl::testing::TemporaryFolder const folder;
  pardl::testing::write_text(folder / "plain", std::string("\0\0\x08\1\0\0\0\2ab", 10));
  CHECK(pardl::data::read_idx(folder / "plain").sum().item<std::int64_t>() == 'a' + 'b');
  pardl::testing::write_text(folder / "packed", "\x1f\x8b and so on");
  CHECK(pardl::testing::what_of<pardl::DataError>([&] { (void)pardl::data::read_idx(folder / "packed"); }) ==
        "[data] " + (folder / "packed").string() +
            " is a gzip file, and this program was built without zlib; link the CMake target pardl::data, or unpack "
            "the file with gunzip.");
}
