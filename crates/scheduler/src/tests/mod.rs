//! Tests over the whole scheduler.
