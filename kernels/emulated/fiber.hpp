// Fibers: stacks that are switched by hand. In: a function. Out: it runs until it switches back.
// Knows nothing of CUDA. Announced to AddressSanitizer, which else takes a switch for an overflow.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#define WEFT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEFT_ASAN 1
#endif
#endif

#ifdef WEFT_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

// void weft_switch(void **save, void *load): pushes what a callee must keep, and swaps stacks.
extern "C" void weft_switch(void **save, void *load);

namespace weft::emulated {

constexpr size_t kStackBytes = 128 * 1024;

// Where one flow of control stands while another runs.
struct Context {
    void *stack_pointer = nullptr;
    void *fake_stack = nullptr;  // AddressSanitizer's
    const void *bottom = nullptr;
    size_t size = 0;
};

inline void switch_context(Context &from, Context &to, bool from_ends) {
#ifdef WEFT_ASAN
    __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.fake_stack, to.bottom, to.size);
#else
    (void)from_ends;
#endif
    weft_switch(&from.stack_pointer, to.stack_pointer);
#ifdef WEFT_ASAN
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

class Fiber {
  public:
    Fiber() : stack_(static_cast<unsigned char *>(std::aligned_alloc(4096, kStackBytes))) {
        if (stack_ == nullptr) std::abort();
    }
    ~Fiber() { std::free(stack_); }
    Fiber(const Fiber &) = delete;
    Fiber &operator=(const Fiber &) = delete;

    // `entry` must never return: it ends with a switch.
    void prepare(void (*entry)());

    Context context;

  private:
    unsigned char *stack_;
};

}  // namespace weft::emulated
