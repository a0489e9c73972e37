# An installed gimli, and a project that finds it by find_package. Compiled without the precompiled header: 13 s the
# first time, nothing when neither gimli's headers nor the project changed.
add_test(NAME consumer.install
         COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --component gimli
                 --prefix ${CMAKE_CURRENT_BINARY_DIR}/consumer/prefix)
set_tests_properties(consumer.install PROPERTIES FIXTURES_SETUP installed_gimli)

add_test(NAME consumer
         COMMAND ${CMAKE_CTEST_COMMAND}
                 --build-and-test ${CMAKE_CURRENT_SOURCE_DIR}/consumer ${CMAKE_CURRENT_BINARY_DIR}/consumer/build
                 --build-generator ${CMAKE_GENERATOR}
                 --build-options -DCMAKE_PREFIX_PATH=${CMAKE_CURRENT_BINARY_DIR}/consumer/prefix
                                 -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_CXX_COMPILER_LAUNCHER=${CCACHE}
                                 -DCMAKE_BUILD_TYPE=${CMAKE_BUILD_TYPE}
                 --test-command consumer)
set_tests_properties(consumer PROPERTIES FIXTURES_REQUIRED installed_gimli)
