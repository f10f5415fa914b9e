// SPDX-License-Identifier: MIT
#include "pardl/data/archive.hpp"

#include <doctest/doctest.h>

#ifdef PARDL_WITH_ZLIB

#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "support/tar_archive.hpp"
#include "support/temporary_folder.hpp"

namespace fs = std::filesystem;
using namespace pardl::testing;
using pardl::DataError;
using pardl::data::extract_tar_gz;
using pardl::data::ExtractOptions;

namespace {

std::ptrdiff_t entries(fs::path const& folder) {
  return fs::exists(folder) ? std::distance(fs::directory_iterator(folder), {}) : 0;
}

std::string noise(std::size_t size) {
  std::mt19937 engine(3);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(engine() & 0xff);
  return bytes;
}

// What extraction says of a bad archive, which must leave the target folder as it was.
std::string refusal(TarArchive const& tar, ExtractOptions const& options = {}) {
  TemporaryFolder folder;
  tar.write(folder / "a.tar.gz");
  fs::create_directories(folder / "out");
  std::string const what = what_of<DataError>([&] { extract_tar_gz(folder / "a.tar.gz", folder / "out", options); });
  CHECK(entries(folder / "out") == 0);
  CHECK(entries(folder.path()) == 2);
  return what;
}

bool has(std::string const& text, std::string const& part) {
  INFO(text);
  bool const found = text.find(part) != std::string::npos;
  CHECK(found);
  return found;
}

}  // namespace

TEST_CASE("files and folders come out as they went in") {
  TemporaryFolder folder;
  std::string const big = noise(700'001), block = noise(512);
  TarArchive tar;
  tar.add("set/", "", '5').add("set/big.bin", big).add("./set/deep/er/block.bin", block).add("set/empty", "");
  tar.add("old-style", "x", '\0').write(folder / "a.tar.gz");
  auto const files = extract_tar_gz(folder / "a.tar.gz", folder / "new/out");
  CHECK(files == std::vector<fs::path>{"set/big.bin", "set/deep/er/block.bin", "set/empty", "old-style"});
  CHECK(read_text(folder / "new/out/set/big.bin") == big);
  CHECK(read_text(folder / "new/out/set/deep/er/block.bin") == block);
  CHECK(fs::file_size(folder / "new/out/set/empty") == 0);
  CHECK(read_text(folder / "new/out/old-style") == "x");
  CHECK(entries(folder / "new/out") == 2);  // and no hidden folder
}

TEST_CASE("what the system's tar writes is read, long names included, in its GNU and its POSIX form") {
  if (std::system("tar --version > /dev/null 2>&1") != 0) {
    MESSAGE("skipped: no tar on this machine");
    return;
  }
  for (std::string const form : {"gnu", "pax", "ustar"}) {
    CAPTURE(form);
    TemporaryFolder folder;
    std::string const name = "in/" + std::string(90, 'd') + "/" + std::string(form == "ustar" ? 95 : 150, 'f');
    fs::create_directories((folder / name).parent_path());
    write_text(folder / name, "deep");
    write_text(folder / "in/a", noise(1000));
    std::string const command =
        "tar -C " + folder.path().string() + " --format=" + form + " -czf " + (folder / "a.tgz").string() + " in";
    REQUIRE(std::system(command.c_str()) == 0);
    extract_tar_gz(folder / "a.tgz", folder / "out");
    CHECK(read_text(folder / "out" / name) == "deep");
    CHECK(read_text(folder / "out/in/a") == noise(1000));
  }
}

TEST_CASE("sizes in base 256, prefixes, and pax records are understood") {
  TemporaryFolder folder;
  TarArchive tar;
  tar.add("leaf", "1", '0', "", "some/prefix").add_pax("path", "from/pax").add("ignored", "2");
  tar.add("././@LongLink", std::string("from/gnu\0", 9), 'L').add("ignored", "3");
  tar.add_pax("size", "1").add("sized", "4").add("comment", "18 comment=hello\n\n", 'g').add("last", "5");
  std::string wide(512, '\0');
  wide.replace(0, 4, "wide");
  wide[124] = '\x80';
  wide[135] = 3;
  wide[156] = '0';
  TarArchive::seal(wide);
  tar.bytes() += wide + "abc" + std::string(509, '\0');
  tar.write(folder / "a.tar.gz");
  extract_tar_gz(folder / "a.tar.gz", folder / "out");
  CHECK(read_text(folder / "out/some/prefix/leaf") == "1");
  CHECK(read_text(folder / "out/from/pax") == "2");
  CHECK(read_text(folder / "out/from/gnu") == "3");
  CHECK(read_text(folder / "out/sized") == "4");
  CHECK(read_text(folder / "out/last") == "5");
  CHECK(read_text(folder / "out/wide") == "abc");
}

TEST_CASE("names that lead outside the folder are refused") {
  for (char const* name : {"../evil", "set/../../evil", "/etc/evil", "..", "set/.."})
    has(refusal(TarArchive().add("set/good", "x").add(name, "x")), "leads outside the folder");
  has(refusal(TarArchive().add_pax("path", "../evil").add("good", "x")), "\"../evil\" in it leads outside");
  has(refusal(TarArchive().add("L", "/etc/evil", 'L').add("good", "x")), "leads outside");
  has(refusal(TarArchive().add("evil", "x", '0', "", "../..")), "leads outside");
  has(refusal(TarArchive().add(".", "x")), "is no file name");
}

TEST_CASE("links, devices and sparse files are refused") {
  has(refusal(TarArchive().add("link", "", '2', "/etc/passwd").add("link/x", "y")), "\"link\" in it is neither a file");
  has(refusal(TarArchive().add("link", "", '1', "/etc/passwd")), "(type '1')");
  for (char const type : {'3', '4', '6', 'S', 'K'})
    has(refusal(TarArchive().add("odd", "", type)), "is neither a file nor a folder");
  has(refusal(TarArchive().add_pax("GNU.sparse.major", "1").add("odd", "x")), "sparse");
}

TEST_CASE("an archive that unpacks to more than allowed is refused before its bytes are written") {
  TarArchive tar;
  tar.add("a", std::string(1000, 'x')).add("b", std::string(1000, 'x'));
  has(refusal(tar, {.max_bytes = 1999}), "it unpacks to more than 1999 bytes");
  has(refusal(tar, {.max_files = 1}), "more than 1 files");
  std::string bomb(512, '\0');  // claims 2^63 bytes
  bomb[0] = 'b';
  bomb[124] = '\x80';
  bomb[128] = '\x7f';
  bomb[156] = '0';
  TarArchive::seal(bomb);
  TarArchive claims;
  claims.bytes() = bomb;
  has(refusal(claims), "it unpacks to more than");
}

TEST_CASE("a damaged archive leaves nothing, wherever it is damaged") {
  TemporaryFolder folder;
  TarArchive tar;
  tar.add("set/a", noise(5000)).add("set/b", noise(3000));
  tar.write(folder / "good.tar.gz");
  std::string const good = read_text(folder / "good.tar.gz");
  for (std::size_t size = 0; size < good.size(); size += 97) {
    CAPTURE(size);
    write_text(folder / "bad.tar.gz", good.substr(0, size));
    CHECK_THROWS_AS(extract_tar_gz(folder / "bad.tar.gz", folder / "out"), DataError);
    CHECK(entries(folder / "out") == 0);
  }
  write_text(folder / "bad.tar.gz", good.substr(0, good.size() - 1));  // one byte short, in gzip's own trailer
  CHECK_THROWS_AS(extract_tar_gz(folder / "bad.tar.gz", folder / "out"), DataError);
  for (std::size_t at = 20; at < good.size(); at += 301) {
    CAPTURE(at);
    std::string flipped = good;
    flipped[at] = static_cast<char>(flipped[at] ^ 0x10);
    write_text(folder / "bad.tar.gz", flipped);
    CHECK_THROWS_AS(extract_tar_gz(folder / "bad.tar.gz", folder / "out"), DataError);
    CHECK(entries(folder / "out") == 0);
  }
  TarArchive header = tar;
  header.bytes()[0] = 'S';
  has(refusal(header), "a header in it is damaged");
  TarArchive::write_gzip(folder / "endless.tar.gz", tar.bytes());
  has(what_of<DataError>([&] { extract_tar_gz(folder / "endless.tar.gz", folder / "out"); }), "it is cut short");
}

TEST_CASE("what is no archive at all is a sentence") {
  TemporaryFolder folder;
  auto const error_for = [&](std::string const& name) {
    return what_of<DataError>([&] { extract_tar_gz(folder / name, folder / "out"); });
  };
  has(error_for("none"), "cannot read " + (folder / "none").string() + ": no such file or folder");
  write_text(folder / "page.html", "<html>" + std::string(1000, ' ') + "</html>");
  has(error_for("page.html"), "it is not compressed with gzip; the archive is damaged or not what it should be");
  TarArchive::write_gzip(folder / "text.gz", std::string(1000, 't'));
  has(error_for("text.gz"), "it is no tar archive");
}

TEST_CASE("files that are there are replaced, and others stay") {
  TemporaryFolder folder;
  fs::create_directories(folder / "out/set");
  write_text(folder / "out/set/a", "old");
  write_text(folder / "out/set/mine", "kept");
  TarArchive().add("set/a", "new").add("set/sub/b", "b").write(folder / "a.tar.gz");
  extract_tar_gz(folder / "a.tar.gz", folder / "out");
  CHECK(read_text(folder / "out/set/a") == "new");
  CHECK(read_text(folder / "out/set/sub/b") == "b");
  CHECK(read_text(folder / "out/set/mine") == "kept");
  CHECK(entries(folder / "out") == 1);
}

TEST_CASE("a disk that takes no more is a sentence, and nothing is unpacked") {
  TemporaryFolder folder;
  TarArchive().add("set/small", "x").add("set/big", noise(100'000)).write(folder / "a.tar.gz");
  rlimit saved{};
  REQUIRE(::getrlimit(RLIMIT_FSIZE, &saved) == 0);
  auto const handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit const small{.rlim_cur = 8192, .rlim_max = saved.rlim_max};
  REQUIRE(::setrlimit(RLIMIT_FSIZE, &small) == 0);
  std::string const what = what_of<DataError>([&] { extract_tar_gz(folder / "a.tar.gz", folder / "out"); });
  ::setrlimit(RLIMIT_FSIZE, &saved);
  std::signal(SIGXFSZ, handler);
  has(what, "would grow beyond the size limit");
  CHECK(entries(folder / "out") == 0);
}

#else

TEST_CASE("archives are not tested: this build has no zlib") { MESSAGE("skipped: no pardl::data"); }

#endif  // PARDL_WITH_ZLIB
