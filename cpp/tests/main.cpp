// Runs the tests of one stem, or all: what the sanitizers should see of the core, without Python.
#include <omp.h>

#include <cstdio>
#include <filesystem>

#include "testing.hpp"

int main(int count, char** arguments) {
    omp_set_num_threads(2);
    const std::string wanted = count > 1 ? arguments[1] : "";
    int ran = 0;
    for (const Test& test : all_tests()) {
        const std::string stem = std::filesystem::path(test.file).stem().string();
        if (!wanted.empty() && stem != wanted) continue;
        const int before = failures;
        test.body(), ++ran;
        std::printf("%s %s: %s\n", stem.c_str(), test.name, failures == before ? "passed" : "failed");
    }
    std::printf("%d tests, %d checks failed\n", ran, failures);
    return ran == 0 || failures > 0;
}
