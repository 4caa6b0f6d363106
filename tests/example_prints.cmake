# example_prints.cmake - an example must print what its last comment says
#
#   cmake -DPROGRAM=... -DSOURCE=... -P tests/example_prints.cmake
#
# runs the program and compares its output with the end of its source:
#
#   // Prints:
#   //   first line
#   //
#   //   third line
#
# Text is cut by FIND and SUBSTRING only: CMake's lists take [ ] and ; for
# their own punctuation.
cmake_minimum_required(VERSION 3.25)

file(READ "${SOURCE}" text)
string(FIND "${text}" "\n// Prints:\n" begin REVERSE)
if(begin EQUAL -1)
  message(FATAL_ERROR "${SOURCE} has no comment \"// Prints:\"")
endif()
string(LENGTH "\n// Prints:" heading)
math(EXPR begin "${begin} + ${heading}")
string(SUBSTRING "${text}" ${begin} -1 expected)
if(expected MATCHES "\n(/?[^/\n][^\n]*)")
  message(FATAL_ERROR
    "${SOURCE}: the comment \"// Prints:\" must be the last, but then comes\n"
    "  ${CMAKE_MATCH_1}")
endif()

# Every line here is "//" or "//   ...": take off first the one, then the other.
string(REPLACE "\n//" "\n" expected "${expected}")
string(REPLACE "\n   " "\n" expected "${expected}")
string(SUBSTRING "${expected}" 1 -1 expected)

execute_process(COMMAND "${PROGRAM}" TIMEOUT 60
  OUTPUT_VARIABLE printed RESULT_VARIABLE status)

if(NOT printed STREQUAL expected)
  file(WRITE "${PROGRAM}.expected" "${expected}")
  file(WRITE "${PROGRAM}.printed" "${printed}")
  find_program(DIFF diff)
  if(DIFF)
    execute_process(COMMAND "${DIFF}" -u --label "what the comment says"
      --label "what the program prints"
      "${PROGRAM}.expected" "${PROGRAM}.printed")
  else()
    message("The comment says:\n${expected}\nThe program prints:\n${printed}")
  endif()
  message(FATAL_ERROR "${SOURCE} prints something else than it says")
endif()
if(NOT status STREQUAL "0")
  message(FATAL_ERROR "${PROGRAM} ended with ${status}")
endif()
