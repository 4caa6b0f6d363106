# refused.cmake - a program that mixes configurations must not start
#
#   cmake -DPROGRAM=... -DFIRST=... -DSECOND=... -P refused.cmake
#
# FIRST and SECOND are what its last words must name, in either order.
cmake_minimum_required(VERSION 3.25)

execute_process(COMMAND "${PROGRAM}" TIMEOUT 60
  OUTPUT_VARIABLE printed ERROR_VARIABLE complained RESULT_VARIABLE status)

if(status MATCHES "^[0-9]+$" OR status MATCHES "timeout" OR printed)
  message(FATAL_ERROR "it was not aborted, but ended with ${status}:\n"
    "${printed}${complained}")
endif()
set(first "[^,\n]*${FIRST}[^,\n]*")
set(second "[^,\n]*${SECOND}[^,\n]*")
if(NOT complained MATCHES "^bao: this program was compiled with two \
configurations: (${first}, and ${second}|${second}, and ${first})\n")
  message(FATAL_ERROR "it does not name ${FIRST} and ${SECOND}:\n"
    "${complained}")
endif()
