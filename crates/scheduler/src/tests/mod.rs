//! Tests over the whole scheduler.

mod histories;
mod plans;
mod rules;
mod world;
