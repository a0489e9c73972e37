# Run as: cmake -P tests/check_layers.cmake
# Who may know whom inside gimli/, read from the #include lines: a part may include itself and every part before it.
cmake_minimum_required(VERSION 3.25)
set(order processor pack tensor_list memory_meter linear_solve trace operators vmap substitution optim inner_loop bilevel task_batch hypergradient distributed gradcheck)
set(torch_only nn data)  # these know libtorch and themselves
set(umbrella gimli)      # gimli.h knows everything and nobody knows it

cmake_path(SET root NORMALIZE ${CMAKE_CURRENT_LIST_DIR}/..)
set(faults "")
macro(fault)
  string(APPEND faults "  " ${ARGN} "\n")
endmacro()

# gimli/optim/rules/sgd.h -> optim, gimli/bilevel.cpp -> bilevel
function(part_of path result)
  string(REGEX REPLACE "^gimli/([^/.]+).*" "\\1" part ${path})
  set(${result} ${part} PARENT_SCOPE)
endfunction()

file(GLOB_RECURSE files RELATIVE ${root} ${root}/gimli/*.h ${root}/gimli/*.cpp)
foreach(file IN LISTS files)
  part_of(${file} part)
  if(part IN_LIST umbrella)
    continue()
  endif()
  list(FIND order ${part} position)
  if(position EQUAL -1 AND NOT part IN_LIST torch_only)
    fault("${file}: '${part}' has no place in the order of parts: give it one at the top of tests/check_layers.cmake.")
    continue()
  endif()

  file(STRINGS ${root}/${file} includes REGEX "^ *# *include *(\"|<(gimli|app|tests|examples|benchmarks)/)")
  foreach(include IN LISTS includes)
    string(REGEX REPLACE "^[^\"<]*[\"<]([^\">]*).*" "\\1" include "${include}")
    if(NOT include MATCHES "^gimli/")
      fault("${file} includes \"${include}\": the library's own headers start with gimli/, others stand in <>, "
            "and the library knows nothing outside of gimli/.")
      continue()
    endif()
    part_of(${include} other)
    list(FIND order ${other} other_position)
    if(other STREQUAL part)
      continue()
    elseif(part IN_LIST torch_only)
      fault("${file} includes \"${include}\": '${part}' may know only libtorch and itself.")
    elseif(other_position EQUAL -1 OR other_position GREATER position)
      fault("${file} includes \"${include}\": '${part}' may not know '${other}'.")
    endif()
  endforeach()
endforeach()

if(faults)
  list(JOIN order " <- " order)
  message(FATAL_ERROR "Arrows between the parts go only to the left, ${order}:\n${faults}")
endif()
list(LENGTH files count)
message(STATUS "${count} files keep the order of parts")
