//! One file for each family of kernels: the struct that a kernel takes, a wrapper that checks sizes
//! and launches, and the same in plain f64 as a reference for tests.

pub mod attention;
pub mod bottleneck;
pub mod embedding;
pub mod gains;
pub mod given_rows;
pub mod kv_cache;
pub mod lora;
pub mod matmul;
pub mod norm;
pub mod rows;
pub mod sampling;
