#pragma once
#include <stdexcept>
#include <string>

namespace leadline {

// The one message form: "[function] rule. Received actual." Python checks first; what is checked here again
// is only what would otherwise read or write outside an array.
inline void require(bool holds, const char* function, const char* rule, const std::string& received) {
    if (!holds) throw std::invalid_argument("[" + std::string(function) + "] " + rule + ". Received " + received + ".");
}

}  // namespace leadline
