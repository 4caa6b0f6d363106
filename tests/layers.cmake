# layers.cmake - proves that no chapter knows anything of a later one
#
#   cmake -P tests/layers.cmake
#
# The order is the one in which include/bao.hpp names the chapters. The same
# reading checks how each chapter opens and that its lines fit in 80 columns.
# Text is cut by FIND and SUBSTRING only: CMake's lists take [ ] and ; for
# their own punctuation.
cmake_minimum_required(VERSION 3.25)

get_filename_component(root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(faults 0)

function(fault text)
  message("layers: ${text}")
  math(EXPR faults "${faults} + 1")
  set(faults ${faults} PARENT_SCOPE)
endfunction()

# Takes the first line off the variable `text` and puts it into `line`.
function(next_line)
  string(FIND "${text}\n" "\n" end)
  string(SUBSTRING "${text}" 0 ${end} line)
  math(EXPR end "${end} + 1")
  string(LENGTH "${text}" length)
  if(end LESS length)
    string(SUBSTRING "${text}" ${end} -1 text)
  else()
    set(text "")
  endif()
  set(text "${text}" PARENT_SCOPE)
  set(line "${line}" PARENT_SCOPE)
endfunction()

# The order of the chapters. The pollers stand where poller.hpp does: first
# what they share, then the three, then the choice among them.
set(pollers poller/epoll.hpp poller/poll.hpp poller/select.hpp)
set(order "")
file(READ "${root}/include/bao.hpp" text)
while(NOT text STREQUAL "")
  next_line()
  if(line MATCHES "^#include \"bao/([^\"]*)\"")
    set(chapter "${CMAKE_MATCH_1}")
    if(chapter IN_LIST order)
      fault("include/bao.hpp names bao/${chapter} twice")
    endif()
    if(chapter STREQUAL "poller.hpp")
      list(APPEND order poller/readiness.hpp ${pollers})
    endif()
    list(APPEND order "${chapter}")
  endif()
endwhile()

file(GLOB_RECURSE chapters RELATIVE "${root}/include/bao"
  "${root}/include/bao/*.hpp")
foreach(chapter IN LISTS chapters)
  if(NOT chapter IN_LIST order)
    fault("include/bao/${chapter} is not in include/bao.hpp")
  endif()
endforeach()

set(above "")
foreach(chapter IN LISTS order)
  # The three pollers stand side by side: only after them is each above.
  if(chapter STREQUAL "poller.hpp")
    list(APPEND above ${pollers})
  endif()

  set(file "include/bao/${chapter}")
  if(NOT EXISTS "${root}/${file}")
    fault("include/bao.hpp names ${file}, which does not exist")
    continue()
  endif()
  file(READ "${root}/${file}" text)

  string(FIND "${text}" "// bao/${chapter} - " opening)
  if(NOT opening EQUAL 0)
    fault("${file}:1: must open with \"// bao/${chapter} - what it is\"")
  endif()
  string(FIND "${text}" "\n// SPDX-License-Identifier: MIT\n" licence)
  if(licence EQUAL -1)
    fault("${file}: lacks the line \"// SPDX-License-Identifier: MIT\"")
  endif()
  string(FIND "${text}" "\n#pragma once\n" once)
  if(once EQUAL -1)
    fault("${file}: lacks the line \"#pragma once\"")
  endif()

  set(number 0)
  while(NOT text STREQUAL "")
    next_line()
    math(EXPR number "${number} + 1")
    string(LENGTH "${line}" columns)
    if(columns GREATER 80)
      fault("${file}:${number}: ${columns} columns, 80 are allowed")
    endif()
    if(line MATCHES "^ *# *include *\"bao/([^\"]*)\"")
      set(included "${CMAKE_MATCH_1}")
      if(NOT included IN_LIST above)
        fault("${file}:${number}: includes bao/${included}, which does not \
stand above bao/${chapter} in include/bao.hpp")
      endif()
    elseif(line MATCHES "^ *# *include *[\"<]bao")
      fault("${file}:${number}: a chapter includes chapters, as \"bao/...\"")
    endif()
  endwhile()
  if(NOT chapter IN_LIST pollers)
    list(APPEND above "${chapter}")
  endif()
endforeach()

list(LENGTH order count)
if(faults GREATER 0)
  message(FATAL_ERROR "${faults} faults in ${count} chapters")
endif()
message(STATUS "${count} chapters, each knows only those above it")
