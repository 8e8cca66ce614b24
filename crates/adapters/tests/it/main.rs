//! The crate's tests from outside, in one binary: links once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod compositions;
mod demo;
mod faults;
mod fuzz;
mod histories;
mod host_memory;
mod loading;
mod malformed;
mod methods;
mod peft_configs;
mod reference;
mod registry;
mod storages;
mod world;
