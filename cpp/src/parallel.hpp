#pragma once
#include <omp.h>
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>

#include "watch.hpp"

namespace leadline {

// Elements per chunk of an elementwise pass. Chunks are fixed by the data alone, never by the thread count,
// so that ordered sums over chunks are the same for any number of threads.
inline constexpr std::int64_t chunk_elements = std::int64_t{1} << 16;

inline std::int64_t chunk_count(std::int64_t size, std::int64_t chunk) { return (size + chunk - 1) / chunk; }

// How many workers a call uses: `threads` (0: OpenMP's default), but never more than there are tasks.
inline int worker_count(std::int64_t tasks, int threads) {
    const std::int64_t wanted = threads > 0 ? threads : omp_get_max_threads();
    return static_cast<int>(std::clamp<std::int64_t>(tasks, 1, wanted));
}

// ThreadSanitizer does not see the barriers of an OpenMP runtime that was built without it. It is told that all tasks
// come after what was before the loop, and before what is behind it, and nothing about one task and another; the loop
// itself, whose variables the runtime guards, is left out of its view.
#if defined(__SANITIZE_THREAD__)
#define LEADLINE_UNSEEN __attribute__((no_sanitize("thread"), noinline))
#define LEADLINE_SEEN __attribute__((noinline))
inline void happens_before(char* edge) { __tsan_release(edge); }
inline void happens_after(char* edge) { __tsan_acquire(edge); }
#else
#define LEADLINE_UNSEEN
#define LEADLINE_SEEN
inline void happens_before(char*) {}
inline void happens_after(char*) {}
#endif

template <class Body>
LEADLINE_SEEN void call_task(Body& body, std::int64_t task, int worker) {
    body(task, worker);
}

// Calls body(task, worker) for every task. The first exception is kept and rethrown on the calling thread: an exception
// that leaves a parallel region would end the process. The only OpenMP pragmas of the library are here. With a watch,
// tasks are not begun once it has stopped; the calling thread goes on asking while others finish theirs.
template <class Body>
LEADLINE_UNSEEN void parallel_for(std::int64_t tasks, int threads, Body&& body, Watch* watch = nullptr) {
    const int workers = worker_count(tasks, threads);
    if (workers == 1) {
        for (std::int64_t task = 0; task < tasks; ++task) {
            if (watch) watch->look();
            call_task(body, task, 0);
        }
        return;
    }
    std::exception_ptr failure;
    std::mutex failing;
    std::atomic<std::int64_t> left = tasks;
    char begin, end;
    happens_before(&begin);
#pragma omp parallel num_threads(workers)
    {
        happens_after(&begin);
#pragma omp for schedule(dynamic) nowait
        for (std::int64_t task = 0; task < tasks; ++task) {
            try {
                if (watch) watch->look();
                call_task(body, task, omp_get_thread_num());
            } catch (...) {
                const std::lock_guard lock(failing);
                if (!failure) failure = std::current_exception();
            }
            --left;
        }
        if (omp_get_thread_num() == 0 && watch && watch->watches())
            while (left > 0 && !watch->stopped()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        happens_before(&end);
    }
    happens_after(&end);
    if (failure) std::rethrow_exception(failure);
}

// Rows as tasks: tiles of `most` rows or, at the end of a group, less; none crosses a group. Fixed by the data, so that
// matrix products have the same shape, and so the same sums, for any number of threads.
struct RowTiles {
    struct Tile {
        std::int64_t group, first, rows;
    };
    RowTiles(std::int64_t rows, std::int64_t groups, std::int64_t most)
        : groups(groups), group_rows(rows / groups), most(most), per_group(chunk_count(group_rows, most)) {}

    std::int64_t count() const { return groups * per_group; }
    Tile at(std::int64_t task) const {
        const std::int64_t group = task / per_group, begin = task % per_group * most;
        return {group, group * group_rows + begin, std::min(most, group_rows - begin)};
    }
    std::int64_t groups, group_rows, most, per_group;
};

}  // namespace leadline
