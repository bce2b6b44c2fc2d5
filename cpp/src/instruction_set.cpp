#include "leadline/instruction_set.hpp"

const char* leadline::instruction_set() {
#if defined(__AVX2__) && defined(__FMA__)
    return "x86-64-v3";
#elif defined(__SSE4_2__)
    return "x86-64-v2";
#else
    return "baseline";
#endif
}
