// SPDX-License-Identifier: MIT
#include "pardl/io/sha256.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include <string_view>

TEST_CASE("SHA-256 gives the digests of FIPS 180-4's examples") {
  auto const sum = [](std::string_view text) {
    pardl::io::Sha256 sha;
    sha.update(text);
    return sha.hex();
  };
  CHECK(sum("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sum("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sum("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sum(std::string(55, 'a')) ==
        "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318");  // the last length that needs one block
  CHECK(sum(std::string(56, 'a')) ==
        "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a");  // the first that needs two
  CHECK(sum(std::string(64, 'a')) ==
        "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");  // a whole block
  CHECK(sum(std::string(1'000'000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("a SHA-256 does not depend on how the bytes were cut, also around the length of a block") {
  for (std::size_t const length :
       {std::size_t{55}, std::size_t{56}, std::size_t{63}, std::size_t{64}, std::size_t{65}, std::size_t{300}}) {
    std::string text(length, ' ');
    for (std::size_t i = 0; i < length; ++i) text[i] = static_cast<char>('a' + i % 26);
    pardl::io::Sha256 whole, pieces;
    whole.update(text);
    for (std::size_t i = 0, step = 1; i < length; i += step, ++step)
      pieces.update(std::string_view(text).substr(i, std::min(step, length - i)));
    CHECK(whole.hex() == pieces.hex());
  }
}
