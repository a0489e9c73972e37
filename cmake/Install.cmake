# `cmake --install`: headers, library and a package for find_package(gimli).
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/gimli)

install(TARGETS gimli EXPORT gimliTargets COMPONENT gimli
        INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/gimli COMPONENT gimli
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN *.h)
install(EXPORT gimliTargets NAMESPACE gimli:: DESTINATION ${package_dir} COMPONENT gimli)

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/gimliConfig.cmake.in ${PROJECT_BINARY_DIR}/gimliConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/gimliConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/gimliConfig.cmake ${PROJECT_BINARY_DIR}/gimliConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT gimli)
