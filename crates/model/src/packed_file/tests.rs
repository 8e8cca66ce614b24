//! What is written is read, to the bit; what is anything else is refused without a panic.
