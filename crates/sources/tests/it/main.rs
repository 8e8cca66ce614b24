//! Fetching from servers in this process that speak the hub's, S3's and a plain web server's protocol.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod hub;
mod objects;
mod registry;
mod shelf;
mod web_directory;
mod world;
