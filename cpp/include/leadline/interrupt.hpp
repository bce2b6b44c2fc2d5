#pragma once
#include <chrono>
#include <functional>
#include <stdexcept>
#include <utility>

// Long calls can be given up: Gram updates, coordinate descent, GPTQ and AdaRound ask the hook of the thread that called
// them, on that thread, now and then. Where it says so they put back what they have changed, and throw.
namespace leadline {

struct Interrupted : std::runtime_error {
    Interrupted() : std::runtime_error("interrupted") {}
};

// Sets the hook of this thread for as long as it lives: true gives a call up. `pause` lies between two questions.
class InterruptHook {
   public:
    explicit InterruptHook(std::function<bool()> gives_up,
                           std::chrono::milliseconds pause = std::chrono::milliseconds(200))
        : gives_up(std::move(gives_up)), pause(pause), outer_(current()) {
        current() = this;
    }
    ~InterruptHook() { current() = outer_; }
    InterruptHook(const InterruptHook&) = delete;

    // Null where the thread has none.
    static const InterruptHook*& current() {
        thread_local const InterruptHook* hook = nullptr;
        return hook;
    }

    const std::function<bool()> gives_up;
    const std::chrono::milliseconds pause;

   private:
    const InterruptHook* outer_;
};

}  // namespace leadline
