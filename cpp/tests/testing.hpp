#pragma once
#include <cstdint>
#include <cstdio>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "leadline/layout.hpp"

// What the tests share. TEST(name) { ... } is a test of the stem that its file is named after; each CHECK prints its
// line when it fails.
struct Test {
    const char* file;
    const char* name;
    void (*body)();
};

inline std::vector<Test>& all_tests() {
    static std::vector<Test> tests;
    return tests;
}

struct Registration {
    Registration(const char* file, const char* name, void (*body)()) { all_tests().push_back({file, name, body}); }
};

#define TEST(name)                                                \
    static void name();                                           \
    static const Registration name##_test{__FILE__, #name, name}; \
    static void name()

inline int failures = 0;

#define CHECK(...)                                                              \
    do {                                                                        \
        if (!(__VA_ARGS__)) {                                                   \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, #__VA_ARGS__);       \
            ++failures;                                                         \
        }                                                                       \
    } while (false)

template <class Call>
bool refused(Call&& call, const std::string& part) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return std::string(error.what()).find(part) != std::string::npos;
    }
    return false;
}

// The same numbers everywhere: the standard library's distributions are its own.
inline std::vector<float> uniform(std::size_t n, unsigned seed, float lo, float hi) {
    std::mt19937 generator(seed);
    std::vector<float> x(n);
    for (float& v : x) v = lo + (hi - lo) * static_cast<float>(generator() >> 8) * 0x1p-24f;
    return x;
}

inline std::vector<float> normal(std::size_t n, unsigned seed = 1) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> distribution(0.2f, 1.5f);
    std::vector<float> x(n);
    for (float& v : x) v = distribution(generator);
    return x;
}

inline const std::vector<leadline::Layout> layouts = {
    {1, 1, 0},     {1, 1, 1},    {1, 1, 17}, {1, 1, 70'001}, {2, 3, 5},  {5, 7, 1},  {40, 3, 2}, {1, 33, 32},
    {3, 2, 33'001}, {70, 65, 15}, {0, 4, 3},  {3, 0, 5},      {3, 4, 0},  {2, 1, 16}, {9000, 3, 1}};
