//! Every kernel against its f64 reference, on the emulated driver, each launch in several orders of
//! its threads; and all of that once more under AddressSanitizer and UBSan.

#![expect(unsafe_code, reason = "launches")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod attention;
mod embedding;
mod emulator;
mod given_rows;
mod lora;
mod matmul;
mod norm;
mod paged;
mod parts;
mod rope;
mod rows;
mod sampling;
mod sanitizers;
mod support;
mod weights;
