#pragma once

namespace leadline {

// What the core was compiled for: "x86-64-v2", "x86-64-v3", or "baseline" where the compiler chose.
const char* instruction_set();

}  // namespace leadline
