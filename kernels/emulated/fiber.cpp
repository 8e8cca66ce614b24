// Switching stacks on x86-64 and AArch64.
#include "fiber.hpp"

#if defined(__x86_64__)
asm(R"(
    .text
    .globl weft_switch
    .type weft_switch, @function
weft_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
    .size weft_switch, .-weft_switch
)");
constexpr size_t kSavedWords = 6;  // then the return address
constexpr size_t kReturnWord = 6;
constexpr size_t kFrameWords = 8;  // the stack is 8 off a multiple of 16 at a function's entry
#elif defined(__aarch64__)
asm(R"(
    .text
    .globl weft_switch
    .type weft_switch, %function
weft_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size weft_switch, .-weft_switch
)");
constexpr size_t kReturnWord = 11;
constexpr size_t kFrameWords = 20;
#else
#error "the emulator switches stacks on x86-64 and AArch64 only"
#endif

namespace weft::emulated {

void Fiber::prepare(void (*entry)()) {
    auto *top = reinterpret_cast<uintptr_t *>(stack_ + kStackBytes);
    uintptr_t *frame = top - kFrameWords;
    for (size_t i = 0; i < kFrameWords; ++i) frame[i] = 0;
    frame[kReturnWord] = reinterpret_cast<uintptr_t>(entry);
    context = Context{frame, nullptr, stack_, kStackBytes};
}

}  // namespace weft::emulated
