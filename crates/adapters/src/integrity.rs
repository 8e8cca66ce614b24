//! Whether a registry's books agree: budget and entries, names and contents, loads and reservations.

use crate::composition::is_unnamed;
use crate::state::{MAX_UNNAMED, State};
use std::sync::atomic::Ordering;

/// All that is wrong, a sentence a line.
pub(crate) fn check(state: &State) -> Result<(), String> {
    let mut wrong = Vec::new();
    check_memory(state, &mut wrong);
    check_names(state, &mut wrong);
    check_loads(state, &mut wrong);
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn check_memory(state: &State, wrong: &mut Vec<String>) {
    let host = &state.host;
    let used: usize = host.entries.values().map(|entry| entry.resident.weights.num_bytes).sum();
    if used != host.used_bytes {
        wrong.push(format!("{used} bytes are held, {} are counted", host.used_bytes));
    }
    let all = used + host.reserved_bytes();
    if host.budget.is_some_and(|budget| all > budget) {
        wrong.push(format!("{all} bytes are held or reserved, more than {:?}", host.budget));
    }
    for (hash, entry) in &host.entries {
        let weights = &entry.resident.weights;
        if weights.content_hash != *hash || weights.num_bytes != entry.num_bytes {
            wrong.push(format!("the entry of {hash} holds {}", weights.content_hash));
        }
        if entry.names.is_empty() && entry.resident.num_holds.load(Ordering::Acquire) == 0 {
            wrong.push(format!("nothing keeps {hash}"));
        }
        let known = || entry.names.iter().filter_map(|name| state.names.get(name));
        let attached = |known: &&crate::state::Known| {
            known.generation.is_some() && known.content_hash == *hash
        };
        if known().filter(attached).count() != entry.names.len() {
            wrong.push(format!("{hash} is attached to names that do not stand for it"));
        }
        if known().filter(|known| known.pinned).count() != entry.num_pinned {
            wrong.push(format!("{hash} counts {} pins", entry.num_pinned));
        }
        if known().map(|known| known.hits).sum::<u64>() != entry.hits {
            wrong.push(format!("{hash} counts {} hits", entry.hits));
        }
    }
}

fn check_names(state: &State, wrong: &mut Vec<String>) {
    for (name, known) in &state.names {
        let attached = state
            .host
            .entries
            .get(&known.content_hash)
            .map_or(0, |entry| entry.names.iter().filter(|attached| *attached == name).count());
        if attached != usize::from(known.generation.is_some()) {
            wrong.push(format!("{name} is attached {attached} times"));
        }
        if is_unnamed(name) && known.generation.is_none() {
            wrong.push(format!("{name} has no name and is not in memory"));
        }
        if known.pinned && known.generation.is_none() {
            wrong.push(format!("{name} is pinned and not in memory"));
        }
        if state.revoked.contains(&**name) {
            wrong.push(format!("{name} is known and revoked"));
        }
    }
    let num_unnamed = state.names.keys().filter(|name| is_unnamed(name)).count();
    if num_unnamed > MAX_UNNAMED {
        wrong.push(format!("{num_unnamed} compositions without a name are remembered"));
    }
    for name in state.backoffs.names() {
        if state.names.get(name).is_some_and(|known| known.generation.is_some()) {
            wrong.push(format!("{name} is in memory and backs off"));
        }
    }
}

fn check_loads(state: &State, wrong: &mut Vec<String>) {
    for (name, loading) in &state.loading {
        if !state.running.contains(&loading.id) {
            wrong.push(format!("the load of {name} has no task"));
        }
    }
    for (id, num_bytes) in &state.host.reserved {
        if !state.running.contains(id) {
            wrong.push(format!("{num_bytes} bytes are reserved for load {id}, which ended"));
        }
    }
}
