//! Seeded fixtures for the tests of other crates.
