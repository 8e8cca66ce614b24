//! The server over real sockets, with the demo model and its adapters.

mod behaviour;
mod churn;
mod faults;
mod lifecycle;
mod tenants;

use crate::support::demo::model_path;
use crate::support::repository;
use crate::support::server::Server;

/// The demo base as `base`, the demo's adapters by directory, and these flags.
fn demo_server(flags: &[&str]) -> Server {
    let (model, adapters) = (model_path(), repository("demo/adapters"));
    let mut args = vec![
        model.to_str().unwrap(),
        "--served-model-name=base",
        "--memory=256MiB",
        "--max-model-len=1024",
        "--adapter-dir",
        adapters.to_str().unwrap(),
    ];
    args.extend(flags);
    Server::start(&args)
}
