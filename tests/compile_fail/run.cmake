# SPDX-License-Identifier: MIT
# cmake -DCXX=… -DFLAGS=flags.rsp -DPCH=header -DONE_ERROR=option -DSOURCE=file.cpp -P run.cmake
# The source must compile as it is, and with PARDL_COMPILE_FAIL must stop with the sentence of its `// expect-error:`.
file(STRINGS "${SOURCE}" expected REGEX "// expect-error: ")
string(REGEX REPLACE ".*// expect-error: " "" expected "${expected}")
string(REPLACE "\\;" ";" expected "${expected}")  # a list's way to write a semicolon
if(NOT expected)
  message(FATAL_ERROR "${SOURCE} has no line `// expect-error: …`")
endif()
set(command "${CXX}" "@${FLAGS}" -fsyntax-only -include "${PCH}" "${SOURCE}")
execute_process(COMMAND ${command} RESULT_VARIABLE code ERROR_VARIABLE text)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "the right use does not compile:\n${text}")
endif()
# The first error is the one that counts, and what LibTorch's headers leave to the end of a unit need not be waited for.
execute_process(COMMAND ${command} -DPARDL_COMPILE_FAIL ${ONE_ERROR} RESULT_VARIABLE code ERROR_VARIABLE text)
if(code EQUAL 0)
  message(FATAL_ERROR "the misuse compiles")
endif()
string(FIND "${text}" "${expected}" at)
if(at EQUAL -1)
  message(FATAL_ERROR "the misuse does not say \"${expected}\" but:\n${text}")
endif()
