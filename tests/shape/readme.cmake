# SPDX-License-Identifier: MIT
# The first C++ block of README.md must be, to the letter, the part of examples/hello_ddp.cpp between its marks.
file(READ "${ROOT}/README.md" readme)
file(READ "${ROOT}/examples/hello_ddp.cpp" source)
string(REGEX MATCH "// \\[readme\\]\n(.*)// \\[/readme\\]\n" found "${source}")
set(program "${CMAKE_MATCH_1}")
if(NOT program)
  message(FATAL_ERROR "examples/hello_ddp.cpp has no part between // [readme] and // [/readme]")
endif()
string(FIND "${readme}" "```cpp\n${program}```" at)
if(at EQUAL -1)
  message(FATAL_ERROR "README.md does not hold the program of examples/hello_ddp.cpp; copy the part between the marks")
endif()
