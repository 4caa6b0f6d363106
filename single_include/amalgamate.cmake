# amalgamate.cmake - writes single_include/bao.hpp: all the chapters, one file
#
#   cmake -P single_include/amalgamate.cmake             writes it
#   cmake -DCHECK=1 -P single_include/amalgamate.cmake   fails if it is stale
#
# It starts at include/bao.hpp and puts each chapter in the place of the first
# #include that names it, as a preprocessor would. Text is cut by FIND and
# SUBSTRING only: CMake's lists take [ ] and ; for their own punctuation.
cmake_minimum_required(VERSION 3.25)

get_filename_component(root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(result "${root}/single_include/bao.hpp")
string(REPEAT "=" 77 rule)

# The amalgam grows in a global property, since the function below calls itself
# and would otherwise have to carry it up through every caller's scope.
function(write text)
  set_property(GLOBAL APPEND_STRING PROPERTY amalgam "${text}")
endfunction()

# Inlines include/<name>, which is included from within `depth` open #ifs.
function(inline name depth)
  file(READ "${root}/include/${name}" text)
  set_property(GLOBAL PROPERTY "seen ${name}" ${depth})

  # One licence line and one include guard serve the whole amalgam.
  string(REPLACE "//\n// SPDX-License-Identifier: MIT\n" "" text "${text}")
  string(REPLACE "// SPDX-License-Identifier: MIT\n" "" text "${text}")
  string(REPLACE "#pragma once\n" "" text "${text}")

  set(outer_depth ${depth})
  set(gap "")  # the blank line above, and what was dropped below it
  while(NOT text STREQUAL "")
    string(FIND "${text}" "\n" end)
    if(end EQUAL -1)
      message(FATAL_ERROR "include/${name} does not end with a newline")
    endif()
    math(EXPR end "${end} + 1")
    string(SUBSTRING "${text}" 0 ${end} line)
    string(SUBSTRING "${text}" ${end} -1 text)

    set(drop FALSE)
    if(line MATCHES "^ *# *if")
      math(EXPR depth "${depth} + 1")
    elseif(line MATCHES "^ *# *endif")
      math(EXPR depth "${depth} - 1")
    elseif(line MATCHES "^ *# *include *\"(bao/[^\"]*)\"")
      set(chapter "${CMAKE_MATCH_1}")
      get_property(seen_depth GLOBAL PROPERTY "seen ${chapter}")
      set(drop TRUE)
      if("${seen_depth}" STREQUAL "")
        write("\n// ${rule}\n")
        inline("${chapter}" ${depth})
        if(NOT name STREQUAL "bao.hpp")
          write("\n// ${rule}\n// ${name}, continued\n")
        endif()
      elseif(seen_depth GREATER 0)
        # Its text stands in one branch of an #if, and is missing in the others.
        message(FATAL_ERROR
          "include/${name} includes ${chapter}, which was first included "
          "inside an #if. Include it once more, before that #if.")
      endif()
    elseif(line MATCHES "^ *# *include *\"")
      message(FATAL_ERROR "include/${name}: write \"bao/...\" in: ${line}")
    elseif(line MATCHES "^ *# *include *<([^>]*)>" AND depth EQUAL 0)
      # Within an #if a system header stays, as another branch may need it too.
      get_property(drop GLOBAL PROPERTY "seen <${CMAKE_MATCH_1}>")
      set_property(GLOBAL PROPERTY "seen <${CMAKE_MATCH_1}>" TRUE)
    endif()

    # Blank lines above and below what is dropped become one.
    if(line STREQUAL "\n" AND gap STREQUAL "blank dropped")
      set(drop TRUE)
    endif()
    if(NOT drop)
      write("${line}")
      set(gap "")
      if(line STREQUAL "\n")
        set(gap "blank")
      endif()
    elseif(gap STREQUAL "blank")
      set(gap "blank dropped")
    endif()
  endwhile()

  if(NOT depth EQUAL outer_depth)
    message(FATAL_ERROR "include/${name}: #if and #endif do not balance")
  endif()
endfunction()

write("// bao.hpp - stackful coroutines in one header: the whole library
//
// This file is generated from include/bao.hpp and include/bao/ by
// single_include/amalgamate.cmake. Do not edit it: edit the chapters there.
//
// SPDX-License-Identifier: MIT
#ifndef BAO_HPP
#define BAO_HPP

")
inline("bao.hpp" 0)
write("\n#endif  // BAO_HPP\n")
get_property(fresh GLOBAL PROPERTY amalgam)

if(CHECK)
  set(committed "")
  if(EXISTS "${result}")
    file(READ "${result}" committed)
  endif()
  if(NOT committed STREQUAL fresh)
    message(FATAL_ERROR "single_include/bao.hpp is stale. To renew it:\n"
      "  cmake -P single_include/amalgamate.cmake")
  endif()
else()
  file(WRITE "${result}" "${fresh}")
endif()
