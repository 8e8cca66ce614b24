//! Tests over the whole loop, on its own thread, with the simulated executor.
