//! Which crate may see which. In: `cargo metadata`. Out: a sentence per edge that points the wrong
//! way.

use crate::tidy;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

/// A crate names only crates that stand above it here.
const ORDER: [&str; 21] = [
    "weft-types",
    "weft-trace",
    "weft-gguf",
    "weft-scheduler",
    "weft-adapters",
    "weft-sources",
    "weft-kernels",
    "weft-emulator",
    "weft-cuda",
    "weft-model",
    "weft-runner",
    "weft-transform",
    "weft-engine",
    "weft-text",
    "weft-server",
    "weft-bench",
    "weft-simulator",
    "weft",
    "weft-testkit",
    "weft-tests",
    "xtask",
];

/// These never reach `HIDDEN`, by whatever path: they live, and are tested, without a model.
const WITHOUT_MODEL: [&str; 10] = [
    "weft-types",
    "weft-trace",
    "weft-scheduler",
    "weft-adapters",
    "weft-sources",
    "weft-engine",
    "weft-text",
    "weft-server",
    "weft-bench",
    "weft-simulator",
];
const HIDDEN: [&str; 5] =
    ["weft-kernels", "weft-cuda", "weft-model", "weft-runner", "weft-transform"];

/// These see `weft-types` and `weft-trace`, which are only data, and no other crate of the workspace.
const PURE: [&str; 3] = ["weft-trace", "weft-scheduler", "weft-bench"];
const DATA: [&str; 2] = ["weft-types", "weft-trace"];

/// Normal dependencies between the workspace's crates.
pub(crate) type Graph = BTreeMap<String, BTreeSet<String>>;

/// Asks cargo for the workspace's crates and their dependencies on each other; dev-dependencies
/// are left out: a test may look wherever it likes.
///
/// # Errors
/// If cargo fails or answers something else.
pub(crate) fn read_metadata(root: &Path) -> Result<Graph> {
    let output = Command::new(tidy::cargo_path())
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root)
        .output()
        .context("cargo did not start")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    graph(&metadata).context("cargo metadata has no packages")
}

fn graph(metadata: &Value) -> Option<Graph> {
    let packages = metadata["packages"].as_array()?;
    let name = |package: &Value| package["name"].as_str().map(str::to_owned);
    let names: BTreeSet<String> = packages.iter().filter_map(name).collect();
    let edges = packages.iter().filter_map(|package| {
        let dependencies = package["dependencies"].as_array()?;
        let ours = dependencies
            .iter()
            .filter(|dependency| dependency["kind"].is_null())
            .filter_map(name)
            .filter(|dependency| names.contains(dependency))
            .collect();
        Some((name(package)?, ours))
    });
    Some(edges.collect())
}

/// A sentence per edge that points the wrong way.
pub(crate) fn violations(graph: &Graph) -> Vec<String> {
    let place = |name: &str| ORDER.iter().position(|&listed| listed == name);
    let mut violations = Vec::new();
    for (name, dependencies) in graph {
        let Some(own) = place(name) else {
            violations
                .push(format!("{name}: give it a place in ORDER, crates/xtask/src/layers.rs"));
            continue;
        };
        for dependency in dependencies {
            if place(dependency).is_some_and(|place| place >= own) {
                violations.push(format!("{name}: depends on {dependency}, which stands below it"));
            }
            if PURE.contains(&name.as_str()) && !DATA.contains(&dependency.as_str()) {
                violations.push(format!("{name}: depends on {dependency}; it may see only types"));
            }
        }
        if WITHOUT_MODEL.contains(&name.as_str()) {
            for hidden in HIDDEN {
                if let Some(path) = path_to(graph, name, hidden) {
                    violations.push(format!("{name}: must not see {hidden}, but {path}"));
                }
            }
        }
    }
    violations
}

/// `a -> b -> c` for some path from `from` to `to`.
fn path_to(graph: &Graph, from: &str, to: &str) -> Option<String> {
    let mut seen = BTreeSet::new();
    let mut paths = vec![vec![from]];
    while let Some(path) = paths.pop() {
        let last = path.last()?;
        if *last == to {
            return Some(path.join(" -> "));
        }
        for next in graph.get(*last).into_iter().flatten() {
            if seen.insert(next) {
                paths.push(path.iter().copied().chain([next.as_str()]).collect());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(edges: &[(&str, &[&str])]) -> Vec<String> {
        let own = |name: &&str| (*name).to_owned();
        violations(
            &edges.iter().map(|(from, to)| (own(from), to.iter().map(own).collect())).collect(),
        )
    }

    #[test]
    fn edges_upwards_are_fine() {
        assert!(check(&[("weft-types", &[]), ("weft", &["weft-server", "weft-model"])]).is_empty());
    }

    #[test]
    fn an_edge_downwards_is_named() {
        let said = check(&[("weft-model", &["weft-runner"])]);
        assert_eq!(said, ["weft-model: depends on weft-runner, which stands below it"]);
    }

    #[test]
    fn the_server_must_not_reach_a_model_through_others() {
        let said = check(&[("weft-server", &["weft-engine"]), ("weft-engine", &["weft-model"])]);
        assert!(said.iter().any(|line| line.contains("weft-server -> weft-engine -> weft-model")));
    }

    #[test]
    fn the_scheduler_sees_only_types_and_strangers_need_a_place() {
        assert_eq!(check(&[("weft-scheduler", &["weft-gguf"])]).len(), 1);
        assert!(check(&[("weft-new", &[])])[0].contains("ORDER"));
    }
}
