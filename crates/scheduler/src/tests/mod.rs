//! Tests over the whole scheduler.

mod fairness;
mod histories;
mod plans;
mod rules;
mod world;
