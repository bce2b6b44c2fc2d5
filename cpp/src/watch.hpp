#pragma once
#include <algorithm>
#include <atomic>
#include <chrono>
#include <span>
#include <thread>
#include <vector>

#include "leadline/interrupt.hpp"

namespace leadline {

// One call's view of its thread's hook. Any worker may look; the calling thread asks.
class Watch {
   public:
    bool watches() const { return hook_ != nullptr; }

    bool stopped() {
        if (!hook_ || stopped_.load(std::memory_order_relaxed)) return stopped_;
        if (std::this_thread::get_id() == caller_ && Clock::now() >= next_) {
            if (hook_->gives_up()) stopped_ = true;
            next_ = Clock::now() + hook_->pause;
        }
        return stopped_;
    }
    void look() {
        if (stopped()) throw Interrupted();
    }

   private:
    using Clock = std::chrono::steady_clock;

    const InterruptHook* hook_ = InterruptHook::current();
    std::thread::id caller_ = std::this_thread::get_id();
    Clock::time_point next_ = hook_ ? Clock::now() + hook_->pause : Clock::time_point();
    std::atomic<bool> stopped_ = false;
};

// Calls change(), and puts `values` back as they were if it throws.
template <class T, class Change>
void all_or_nothing(std::span<T> values, Change&& change) {
    const std::vector<T> before(values.begin(), values.end());
    try {
        change();
    } catch (...) {
        std::copy(before.begin(), before.end(), values.begin());
        throw;
    }
}

}  // namespace leadline
