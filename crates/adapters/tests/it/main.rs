//! The crate's tests from outside, in one binary: links once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod demo;
mod fuzz;
mod loading;
mod malformed;
mod peft_configs;
mod registry;
