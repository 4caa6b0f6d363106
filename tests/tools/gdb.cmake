# gdb.cmake - asks gdb for the tasks of a process, and of its core file
#
#   cmake -DGDB=... -DPROGRAM=... -P gdb.cmake
#
# Text is cut by FIND and SUBSTRING only: CMake's lists take [ ] and ; for
# their own punctuation.
cmake_minimum_required(VERSION 3.25)

cmake_path(GET PROGRAM PARENT_PATH folder)
set(core "${PROGRAM}.core")
file(REMOVE "${core}")
set(gdb "${GDB}" -nx --batch -iex "add-auto-load-safe-path ${folder}"
  -iex "set width 0" "${PROGRAM}")
set(ask -ex bt -ex "bao tasks bt" -ex "bao task 4 info frame"
  -ex "bao task 99" -ex "bt 1")

execute_process(TIMEOUT 100
  COMMAND ${gdb} -ex "break stop_here" -ex run ${ask}
    -ex "generate-core-file ${core}" -ex kill
  OUTPUT_VARIABLE process ERROR_VARIABLE process)
foreach(reason "ptrace: " "Cannot find thread-local"
    "Python scripting is not supported")
  string(FIND "${process}" "${reason}" at)
  if(NOT at EQUAL -1)
    message("skipped, for gdb says:\n${process}")
    return()
  endif()
endforeach()
execute_process(TIMEOUT 100 COMMAND ${gdb} "${core}" ${ask}
  OUTPUT_VARIABLE file ERROR_VARIABLE file)
file(REMOVE "${core}")

set(faults 0)

# The text has a part that begins with `head`, and in it, in this order, each of
# the strings that follow. The next task or thread begins another part.
function(expect head)
  string(FIND "${text}" "${head}" begin)
  if(begin EQUAL -1)
    message("${source}: there is no \"${head}\"")
    set(faults 1 PARENT_SCOPE)
    return()
  endif()
  string(SUBSTRING "${text}" ${begin} -1 part)
  foreach(next "\n  task " "\nThread ")
    string(FIND "${part}" "${next}" end)
    string(SUBSTRING "${part}" 0 ${end} part)
  endforeach()
  set(rest "${part}")
  foreach(word IN LISTS ARGN)
    string(FIND "${rest}" "${word}" at)
    if(at EQUAL -1)
      message("${source}: there is no \"${word}\" where it should be in\n${part}")
      set(faults 1 PARENT_SCOPE)
      return()
    endif()
    string(SUBSTRING "${rest}" ${at} -1 rest)
  endforeach()
endfunction()

foreach(source process file)
  set(text "${${source}}")

  # A backtrace of the task that runs ends where its stack does.
  expect("#0 " "stop_here (" "::runner ")

  expect("task 0 \"main\" is parked: joining task 6, for " " main ()")
  expect("task 1 \"reader\" (" "parked.cpp:" ") is parked: waiting for "
    "wait_for_pipe (" "read_on (" "::runner ")
  expect("task 2 \"adder\" (" "is parked: sleeping, for " "nap (" "::runner "
    "which was resumed by" "add_numbers (" "::runner ")
  expect("task 3 \"switcher\" (" "is parked: sleeping, for " "nap (" "::runner "
    "whose parent is" "switch_about (" "::runner ")
  expect("task 4 \"joiner\" (" "is parked: joining task 1, for " "join_it ("
    "::runner ")
  expect("task 5 has not started")
  expect("task 6 \"busy\" (" "is running" "#0 " "stop_here (" "::runner ")
  expect("Thread 2:")
  expect("task 1 \"foreigner\" (" "is parked: sleeping, for " "nap ("
    "::runner ")
  # Another command, a mistake; and after them all is as it was.
  expect("Stack level 1, frame at")
  expect("bao: no such task here" "#0 " "stop_here")

  foreach(bad "Traceback" "corrupt stack" "Python Exception"
      "0x0000000000000000 in ??")
    string(FIND "${text}" "${bad}" at)
    if(NOT at EQUAL -1)
      message("${source}: \"${bad}\"")
      set(faults 1)
    endif()
  endforeach()
endforeach()

if(faults)
  message("--- of the process\n${process}\n--- of its core file\n${file}")
  message(FATAL_ERROR "gdb did not say what it should")
endif()
