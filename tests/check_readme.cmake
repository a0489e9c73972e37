# The README's example is examples/quickstart.cpp, which the tests compile and run.
get_filename_component(root ${CMAKE_CURRENT_LIST_DIR} DIRECTORY)
file(READ ${root}/README.md readme)
file(READ ${root}/examples/quickstart.cpp example)
string(FIND "${readme}" "```cpp\n${example}```" position)
if(position EQUAL -1)
  message(FATAL_ERROR "README.md does not show examples/quickstart.cpp as it is; copy the file into its first example.")
endif()
