# embed_presets(FOLDER SOURCE): a C++ source that holds the files FOLDER/<experiment>/<name>.toml as app/preset.h wants
# them.
function(embed_presets folder source)
  file(GLOB files CONFIGURE_DEPENDS ${folder}/*/*.toml)
  list(SORT files)
  set(entries)
  foreach(file ${files})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    get_filename_component(name ${file} NAME_WLE)
    get_filename_component(experiment ${file} DIRECTORY)
    get_filename_component(experiment ${experiment} NAME)
    file(STRINGS ${file} summary LIMIT_COUNT 1)
    if(NOT summary MATCHES "^# ")
      message(FATAL_ERROR "${file} must begin with a comment that says what it is")
    endif()
    string(SUBSTRING "${summary}" 2 -1 summary)
    file(READ ${file} toml)
    string(APPEND entries "      {\"${experiment}\", \"${name}\", R\"text(${summary})text\", R\"text(${toml})text\"},\n")
  endforeach()
  file(CONFIGURE OUTPUT ${source} @ONLY CONTENT [[
#include "app/preset.h"

namespace gimli::app {

const std::vector<Preset>& presets() {
  static const std::vector<Preset> all{
@entries@  };
  return all;
}

}  // namespace gimli::app
]])
endfunction()
