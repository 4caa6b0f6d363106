# rows.cmake - proves that every numbered promise is kept, or is excused
#
#   cmake -P tests/rows.cmake
#
# The promises are numbered, after the rows of the tables that list them: Y for
# Python's generators, S for greenlet, V for gevent, X for what only C++ asks.
# A test that keeps one carries its number:
#
#   TEST_CASE("V9, X10: join does not throw the task's error")
#
# and so does a whole program that is a test, in a comment "// X14: ...". What
# is kept by none stands in the README, with the reason.
#
# Only labels are cut out of the text, never lines: CMake's lists take [ ] and ;
# for their own punctuation, and labels have none.
cmake_minimum_required(VERSION 3.25)

# The last number of each letter.
set(letters Y S V X)
set(last_Y 18)
set(last_S 31)
set(last_V 93)
set(last_X 23)

get_filename_component(root "${CMAKE_CURRENT_LIST_DIR}/.." ABSOLUTE)
set(heading "Promises that do not apply")
set(number "[YSVX][0-9]+")
set(faults 0)

function(fault text)
  message("rows: ${text}")
  math(EXPR faults "${faults} + 1")
  set(faults ${faults} PARENT_SCOPE)
endfunction()

# Sets `known` to whether there is such a promise.
function(look_up row)
  string(SUBSTRING "${row}" 0 1 letter)
  string(SUBSTRING "${row}" 1 -1 n)
  set(known FALSE)
  if(n MATCHES "^[1-9][0-9]*$" AND NOT n GREATER last_${letter})
    set(known TRUE)
  endif()
  set(known ${known} PARENT_SCOPE)
endfunction()

# The tests. A label that only looks like one would be overlooked: so it is
# found by how it begins, and then must be whole.
set(tested "")
set(label_begin "(TEST_CASE[A-Z_]*\\([ \n]*\"|\n *// )")
file(GLOB sources RELATIVE "${root}" "${root}/tests/*.cpp"
  "${root}/tests/*/*.cpp")
foreach(source IN LISTS sources)
  file(READ "${root}/${source}" text)
  string(REGEX MATCHALL "${label_begin}[A-Z][0-9]+[^:\"\n]*:" labels
    "\n${text}")
  foreach(label IN LISTS labels)
    string(REGEX REPLACE "^${label_begin}" "" label "${label}")
    if(NOT label MATCHES "^${number}(, ${number})*:$")
      fault("${source}: \"${label}\" is not like \"V9:\" or \"V9, X10:\"")
      continue()
    endif()
    string(REGEX MATCHALL "${number}" rows "${label}")
    foreach(row IN LISTS rows)
      look_up(${row})
      if(NOT known)
        fault("${source}: ${row} is the number of no promise")
      elseif(NOT row IN_LIST tested)
        list(APPEND tested ${row})
        set(tested_in_${row} "${source}")
      endif()
    endforeach()
  endforeach()
endforeach()

# The excuses: the lines of the README's table, each with a first cell like
# "Y13", "V13, X8" or "V49-V63".
set(excused "")
file(READ "${root}/README.md" text)
string(FIND "${text}" "\n## ${heading}\n" begin)
if(begin EQUAL -1)
  message(FATAL_ERROR "README.md has no section \"${heading}\"")
endif()
string(SUBSTRING "${text}" ${begin} -1 text)
string(SUBSTRING "${text}" 1 -1 after)
string(FIND "${after}" "\n## " end)
string(SUBSTRING "${after}" 0 ${end} text)
string(REGEX MATCHALL "\n\\| [A-Z][0-9][^|\n]*\\|" cells "${text}")
foreach(cell IN LISTS cells)
  string(REGEX REPLACE "^\n\\| | *\\|$" "" cell "${cell}")
  set(range "${number}(-${number})?")
  if(NOT cell MATCHES "^${range}(, ${range})*$")
    fault("README.md: \"${cell}\" is not like \"Y13\" or \"V1, V3-V5\"")
    continue()
  endif()
  string(REGEX MATCHALL "${range}" ranges "${cell}")
  foreach(range IN LISTS ranges)
    string(REGEX MATCH "^([YSVX])([0-9]+)" from "${range}")
    set(letter ${CMAKE_MATCH_1})
    set(first ${CMAKE_MATCH_2})
    string(REGEX MATCH "([YSVX])([0-9]+)$" to "${range}")
    if(NOT CMAKE_MATCH_1 STREQUAL letter OR CMAKE_MATCH_2 LESS first)
      fault("README.md: \"${range}\" goes backwards")
      continue()
    endif()
    foreach(n RANGE ${first} ${CMAKE_MATCH_2})
      look_up(${letter}${n})
      if(NOT known)
        fault("README.md: ${letter}${n} is the number of no promise")
      elseif(${letter}${n} IN_LIST excused)
        fault("README.md: ${letter}${n} is excused twice")
      else()
        list(APPEND excused ${letter}${n})
      endif()
    endforeach()
  endforeach()
endforeach()

# Each has one of the two, and only one.
set(all 0)
foreach(letter IN LISTS letters)
  foreach(n RANGE 1 ${last_${letter}})
    set(row ${letter}${n})
    math(EXPR all "${all} + 1")
    if(row IN_LIST tested AND row IN_LIST excused)
      fault("${row} is excused in README.md, and has a test in \
${tested_in_${row}}")
    elseif(NOT row IN_LIST tested AND NOT row IN_LIST excused)
      fault("${row} has no test, and no excuse in README.md")
    endif()
  endforeach()
endforeach()

list(LENGTH tested kept)
list(LENGTH excused not_kept)
if(faults GREATER 0)
  message(FATAL_ERROR "${faults} faults: of ${all} promises ${kept} have a \
test, ${not_kept} an excuse")
endif()
message(STATUS "${all} promises: ${kept} have a test, ${not_kept} an excuse")
