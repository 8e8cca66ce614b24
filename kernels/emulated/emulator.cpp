// See emulator.hpp.
#include "emulator.hpp"

#include "fiber.hpp"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace weft::emulated {
namespace {

constexpr unsigned kWarp = 32;

struct Kernel {
    std::string name;
    size_t param_bytes;
    unsigned max_threads;
    void (*body)(const void *);
};

std::vector<Kernel> &kernels() {
    static std::vector<Kernel> all;
    return all;
}

// A small generator: SplitMix64.
struct Rng {
    uint64_t state;
    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
};

enum class Status { kReady, kAtBarrier, kAtCollective, kEnded };

struct AsyncCopy {
    void *to;
    const void *from;
    size_t num_bytes;
    unsigned group;
};

struct Thread {
    Fiber fiber;
    ThreadState state;
    Status status;
    std::vector<AsyncCopy> copies;
    unsigned num_groups;  // committed
};

// Lanes that wait for each other.
struct Collective {
    unsigned mask = 0;
    unsigned arrived = 0;
    void *operands[kWarp];
};

struct Warp {
    Collective collectives[kWarp];  // by the lowest lane of the mask
};

// One block at a time, on one thread of the host.
class BlockRunner {
  public:
    bool run(const Kernel &kernel, const void *params, Dim3 grid, Dim3 block, Dim3 index,
             size_t shared_bytes, uint64_t seed);

    const ThreadState &current_state() const { return threads_[current_]->state; }
    void block_barrier();
    void warp_collective(unsigned mask, void *operands, void (*op)(void **));
    void copy_async(void *to, const void *from, size_t num_bytes);
    void copy_commit() { ++threads_[current_]->num_groups; }
    void copy_wait(unsigned num_pending);
    [[noreturn]] void fail(const char *message);
    void body();

    std::string error;

  private:
    void yield() { switch_context(threads_[current_]->fiber.context, scheduler_, false); }
    void release_barrier();
    void shuffle();

    std::vector<std::unique_ptr<Thread>> threads_;
    std::vector<Warp> warps_;
    std::vector<unsigned> order_;
    Context scheduler_;
    unsigned num_threads_ = 0;
    unsigned current_ = 0;
    unsigned num_ended_ = 0;
    unsigned num_at_barrier_ = 0;
    const Kernel *kernel_ = nullptr;
    const void *params_ = nullptr;
    Rng rng_{0};
    bool shuffled_ = false;
};

thread_local BlockRunner *runner = nullptr;

void entry() { runner->body(); }

void BlockRunner::body() {
#ifdef WEFT_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_.bottom, &scheduler_.size);
#endif
    kernel_->body(params_);
    Thread &self = *threads_[current_];
    self.status = Status::kEnded;
    ++num_ended_;
    release_barrier();
    switch_context(self.fiber.context, scheduler_, true);
}

void BlockRunner::shuffle() {
    if (!shuffled_) return;
    for (unsigned i = num_threads_; i > 1; --i) {
        std::swap(order_[i - 1], order_[rng_.next() % i]);
    }
}

void BlockRunner::release_barrier() {
    if (num_at_barrier_ == 0 || num_at_barrier_ + num_ended_ < num_threads_) return;
    for (unsigned i = 0; i < num_threads_; ++i) {
        if (threads_[i]->status == Status::kAtBarrier) threads_[i]->status = Status::kReady;
    }
    num_at_barrier_ = 0;
    shuffle();
}

void BlockRunner::block_barrier() {
    threads_[current_]->status = Status::kAtBarrier;
    ++num_at_barrier_;
    release_barrier();
    yield();
}

void BlockRunner::warp_collective(unsigned mask, void *operands, void (*op)(void **)) {
    Thread &self = *threads_[current_];
    const unsigned lane = self.state.lane;
    if ((mask >> lane & 1) == 0) fail("a lane calls a collective whose mask leaves it out");
    const unsigned warp = current_ / kWarp;
    Collective &collective = warps_[warp].collectives[__builtin_ctz(mask)];
    if (collective.arrived != 0 && collective.mask != mask) {
        fail("lanes of a warp wait at collectives with different masks");
    }
    collective.mask = mask;
    collective.arrived |= 1u << lane;
    collective.operands[lane] = operands;
    if (collective.arrived != mask) {
        self.status = Status::kAtCollective;
        yield();
        return;
    }
    for (unsigned i = 0; i < kWarp; ++i) {
        if ((mask >> i & 1) == 0) collective.operands[i] = nullptr;
    }
    op(collective.operands);
    collective.arrived = 0;
    for (unsigned i = 0; i < kWarp; ++i) {
        if ((mask >> i & 1) != 0) threads_[warp * kWarp + i]->status = Status::kReady;
    }
}

void BlockRunner::copy_async(void *to, const void *from, size_t num_bytes) {
    Thread &self = *threads_[current_];
    if (shuffled_ && (rng_.next() & 1) != 0) {
        std::memcpy(to, from, num_bytes);
    } else {
        self.copies.push_back({to, from, num_bytes, self.num_groups});
    }
}

void BlockRunner::copy_wait(unsigned num_pending) {
    Thread &self = *threads_[current_];
    size_t kept = 0;
    for (const AsyncCopy &copy : self.copies) {
        // Those not yet committed are not waited for.
        if (copy.group < self.num_groups && self.num_groups - copy.group > num_pending) {
            std::memcpy(copy.to, copy.from, copy.num_bytes);
        } else {
            self.copies[kept++] = copy;
        }
    }
    self.copies.resize(kept);
}

void BlockRunner::fail(const char *message) {
    if (error.empty()) error = kernel_->name + ": " + message;
    // The launch is over: this fiber never runs again.
    Thread &self = *threads_[current_];
    self.status = Status::kEnded;
    switch_context(self.fiber.context, scheduler_, true);
    std::abort();
}

bool BlockRunner::run(const Kernel &kernel, const void *params, Dim3 grid, Dim3 block, Dim3 index,
                      size_t shared_bytes, uint64_t seed) {
    kernel_ = &kernel;
    params_ = params;
    num_threads_ = block.x * block.y * block.z;
    shuffled_ = seed != 0;
    const uint64_t linear = index.x + uint64_t{grid.x} * (index.y + uint64_t{grid.y} * index.z);
    rng_ = Rng{seed ^ (linear * 0x9e3779b97f4a7c15ull)};
    while (threads_.size() < num_threads_) threads_.push_back(std::make_unique<Thread>());
    warps_.assign((num_threads_ + kWarp - 1) / kWarp, Warp{});
    // Exactly as much as was asked for, filled with NaNs: reads before writes and beyond the end show.
    struct Free {
        void operator()(unsigned char *pointer) const { std::free(pointer); }
    };
    std::unique_ptr<unsigned char, Free> allocation;
    if (shared_bytes != 0) {
        void *pointer = nullptr;
        if (posix_memalign(&pointer, 128, shared_bytes) != 0) std::abort();
        std::memset(pointer, 0xff, shared_bytes);
        allocation.reset(static_cast<unsigned char *>(pointer));
    }
    unsigned char *shared = allocation.get();
    order_.resize(num_threads_);
    for (unsigned i = 0; i < num_threads_; ++i) {
        Thread &thread = *threads_[i];
        const Dim3 thread_idx{i % block.x, i / block.x % block.y, i / block.x / block.y};
        thread.state = ThreadState{thread_idx, index, block, grid, i % kWarp, shared};
        thread.status = Status::kReady;
        thread.copies.clear();
        thread.num_groups = 0;
        thread.fiber.prepare(entry);
        order_[i] = i;
    }
    num_ended_ = num_at_barrier_ = 0;
    shuffle();
    runner = this;
    while (num_ended_ < num_threads_) {
        bool progressed = false;
        for (unsigned at = 0; at < num_threads_; ++at) {
            const unsigned i = order_[at];
            if (threads_[i]->status != Status::kReady) continue;
            progressed = true;
            current_ = i;
            switch_context(scheduler_, threads_[i]->fiber.context, false);
            if (!error.empty()) return false;
        }
        if (!progressed) {
            error = kernel.name + ": threads wait for each other at different places: a barrier or a "
                                  "warp collective that not all of them reach";
            return false;
        }
    }
    return true;
}

}  // namespace

const ThreadState &current() { return runner->current_state(); }
void block_barrier() { runner->block_barrier(); }
void warp_collective(unsigned mask, void *operands, void (*op)(void **)) {
    runner->warp_collective(mask, operands, op);
}
void copy_async(void *to, const void *from, size_t num_bytes) {
    runner->copy_async(to, from, num_bytes);
}
void copy_commit() { runner->copy_commit(); }
void copy_wait(unsigned num_pending) { runner->copy_wait(num_pending); }
void fail(const char *message) { runner->fail(message); }

Registration::Registration(const char *name, size_t param_bytes, unsigned max_threads,
                           void (*body)(const void *)) {
    kernels().push_back({name, param_bytes, max_threads, body});
}

}  // namespace weft::emulated

using namespace weft::emulated;

// The index of a kernel, or -1.
extern "C" int weft_emulated_find(const char *name) {
    const auto &all = kernels();
    for (size_t i = 0; i < all.size(); ++i) {
        if (all[i].name == name) return static_cast<int>(i);
    }
    return -1;
}

// The name of a kernel, or null behind the last.
extern "C" const char *weft_emulated_name(int index) {
    const auto &all = kernels();
    return index >= 0 && static_cast<size_t>(index) < all.size() ? all[index].name.c_str() : nullptr;
}

// Bytes of the struct that a kernel takes.
extern "C" size_t weft_emulated_param_bytes(int index) { return kernels()[index].param_bytes; }

// Runs a kernel to its end. 0, or 1 with a sentence in `message`. With a seed that is not 0, the
// order of threads and blocks is shuffled.
extern "C" int weft_emulated_launch(int index, const unsigned *grid, const unsigned *block,
                                    size_t shared_bytes, const void *params, size_t param_bytes,
                                    uint64_t seed, char *message, size_t message_bytes) {
    const Kernel &kernel = kernels()[index];
    const unsigned num_threads = block[0] * block[1] * block[2];
    const uint64_t num_blocks = uint64_t{grid[0]} * grid[1] * grid[2];
    const auto refuse = [&](const std::string &reason) {
        std::snprintf(message, message_bytes, "%s", reason.c_str());
        return 1;
    };
    if (param_bytes != kernel.param_bytes) {
        return refuse(kernel.name + " takes " + std::to_string(kernel.param_bytes) +
                      " bytes of parameters, not " + std::to_string(param_bytes));
    }
    if (num_threads == 0 || num_threads > kernel.max_threads) {
        return refuse(kernel.name + " runs in blocks of up to " + std::to_string(kernel.max_threads) +
                      " threads, not " + std::to_string(num_threads));
    }
    if (num_blocks == 0 || grid[1] > 65535 || grid[2] > 65535) return refuse(kernel.name + ": bad grid");
    if (shared_bytes > 227 * 1024) return refuse(kernel.name + ": too much shared memory");

    std::atomic<uint64_t> next{0};
    std::atomic<bool> failed{false};
    std::string error;
    const uint64_t start = seed == 0 ? 0 : Rng{seed}.next() % num_blocks;
    const auto work = [&] {
        BlockRunner blocks;
        for (;;) {
            const uint64_t taken = next.fetch_add(1);
            if (taken >= num_blocks || failed.load()) return;
            const uint64_t at = (taken + start) % num_blocks;
            const Dim3 block_idx{static_cast<unsigned>(at % grid[0]),
                                 static_cast<unsigned>(at / grid[0] % grid[1]),
                                 static_cast<unsigned>(at / grid[0] / grid[1])};
            if (!blocks.run(kernel, params, {grid[0], grid[1], grid[2]},
                            {block[0], block[1], block[2]}, block_idx, shared_bytes, seed)) {
                if (!failed.exchange(true)) error = blocks.error;
                return;
            }
        }
    };
    // A thread costs more than a few small blocks.
    const uint64_t num_workers = std::min<uint64_t>(
        {std::max(1u, std::thread::hardware_concurrency()), num_blocks, 1 + num_blocks * num_threads / 2048});
    std::vector<std::thread> others;
    for (uint64_t i = 1; i < num_workers; ++i) others.emplace_back(work);
    work();
    for (std::thread &other : others) other.join();
    return failed.load() ? refuse(error) : 0;
}
