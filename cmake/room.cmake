# room(name deps... [USES libraries...]): the library of src/name, which can include only its own headers and those of its deps.
# The compiler is given one project include path, a folder of links to exactly those rooms: a forbidden include is "file not found".
# Files ending in _test.cpp make the executable NAME_test, which may also see backend and testing; its cases are CTest cases.

# A fresh folder of links to the named rooms; its path is returned in `out`.
function(make_view out name)
  set(view ${CMAKE_BINARY_DIR}/view/${name})
  file(REMOVE_RECURSE ${view})
  file(MAKE_DIRECTORY ${view})
  foreach(seen ${ARGN})
    file(CREATE_LINK ${CMAKE_SOURCE_DIR}/src/${seen} ${view}/${seen} SYMBOLIC)
  endforeach()
  set(${out} ${view} PARENT_SCOPE)
endfunction()

function(room name)
  cmake_parse_arguments(PARSE_ARGV 1 ARG "" "" "USES")
  set(sees ${ARG_UNPARSED_ARGUMENTS})
  file(GLOB_RECURSE files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/src/${name}/*.cpp)
  set(tests ${files})
  list(FILTER files EXCLUDE REGEX "_test\\.cpp$")
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  if(name STREQUAL cli)
    list(FILTER files EXCLUDE REGEX "/main\\.cpp$")
  endif()
  if(NOT files)
    set(placeholder ${CMAKE_BINARY_DIR}/empty_${name}.cpp)
    file(TOUCH ${placeholder})
    set(files ${placeholder})
  endif()

  make_view(view ${name} ${name} ${sees})
  add_library(tessera_${name} STATIC ${files})
  target_include_directories(tessera_${name} PRIVATE ${view})
  list(TRANSFORM sees PREPEND tessera_ OUTPUT_VARIABLE libraries)
  target_link_libraries(tessera_${name} PUBLIC ${libraries} PRIVATE ${ARG_USES})

  if(TESSERA_TESTS AND tests)
    set(test_sees ${name} ${sees} backend testing)
    list(REMOVE_DUPLICATES test_sees)
    make_view(test_view ${name}_test ${test_sees})
    add_executable(${name}_test ${tests})
    target_include_directories(${name}_test PRIVATE ${test_view})
    target_link_libraries(${name}_test PRIVATE tessera_${name} tessera_testing ${ARG_USES} GTest::gtest_main)
    target_compile_definitions(${name}_test PRIVATE TESSERA_SHARED="${CMAKE_SOURCE_DIR}/../shared")
    gtest_discover_tests(${name}_test TEST_PREFIX ${name}. DISCOVERY_TIMEOUT 60
      PROPERTIES LABELS unit SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")
  endif()
endfunction()
