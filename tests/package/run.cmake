# run.cmake - uses bao from a project of its own, in three ways
#
#   cmake -DBUILD_DIR=... -DGENERATOR=... -DCOMPILER=... -P run.cmake
cmake_minimum_required(VERSION 3.25)

get_filename_component(bao "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
file(REMOVE_RECURSE "${BUILD_DIR}")

# Runs a command, and shows what it wrote only if it failed.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status
    OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT status STREQUAL "0")
    list(JOIN ARGV " " command)
    message("${output}")
    message(FATAL_ERROR "ended with ${status}: ${command}")
  endif()
endfunction()

function(configure source build)
  run("${CMAKE_COMMAND}" -S "${source}" -B "${build}" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${COMPILER}" ${ARGN})
endfunction()

# What was installed is moved once more, as a package of a distribution is: it
# may know nothing of where it was.
configure("${bao}" "${BUILD_DIR}/bao"
  -DBAO_BUILD_TESTS=OFF -DBAO_BUILD_EXAMPLES=OFF)
run("${CMAKE_COMMAND}" --install "${BUILD_DIR}/bao"
  --prefix "${BUILD_DIR}/staged")
file(RENAME "${BUILD_DIR}/staged" "${BUILD_DIR}/prefix")

foreach(way find_package add_subdirectory fetch_content)
  set(build "${BUILD_DIR}/${way}")
  configure("${CMAKE_CURRENT_LIST_DIR}" "${build}" -DWAY=${way}
    "-DBAO=${bao}" "-DCMAKE_PREFIX_PATH=${BUILD_DIR}/prefix"
    "-DFETCHCONTENT_SOURCE_DIR_BAO=${bao}")
  run("${CMAKE_COMMAND}" --build "${build}")
  run("${build}/consumer")

  # The consumer installs nothing, so bao must not do it behind its back.
  run("${CMAKE_COMMAND}" --install "${build}" --prefix "${build}/installed")
  file(GLOB_RECURSE installed "${build}/installed/*")
  if(installed)
    message(FATAL_ERROR "${way}: the consumer would install ${installed}")
  endif()
endforeach()
