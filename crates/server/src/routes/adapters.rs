//! Adapters at run time: vLLM's `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, text for
//! text, and `/v1/adapters`, which lists and pins what is there.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::JsonBody;
use crate::state::AppState;
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use std::collections::HashSet;
use std::time::UNIX_EPOCH;
use weft_adapters::{AdapterInfo, AdapterTier};
use weft_engine::{MemoryStats, PoolUse};
use weft_types::ContentHash;

/// One adapter of `/v1/adapters`.
#[derive(Debug, Serialize)]
pub(crate) struct AdapterEntry {
    name: String,
    path: String,
    /// The fastest tier that has it: `device`, `host`, or `source`, from which it is read when
    /// asked for.
    tier: &'static str,
    /// Never evicted.
    pinned: bool,
    rank: Option<usize>,
    /// In host memory and on the device.
    bytes: usize,
    hash: Option<String>,
    /// Sequences that hold it.
    leases: usize,
    /// How often it was asked for.
    hits: u64,
    /// Unix seconds.
    last_used: Option<u64>,
}

/// How the device's memory is used, in chunks.
#[derive(Debug, Serialize)]
struct Pool {
    chunk_bytes: usize,
    chunks: usize,
    free: usize,
    kv: usize,
    prefix: usize,
    adapters: usize,
    idle_adapters: usize,
}

/// Host memory for adapters, in bytes.
#[derive(Debug, Serialize)]
struct HostMemory {
    used: usize,
    budget: Option<usize>,
}

/// All adapters, and where there is room for them.
#[derive(Debug, Serialize)]
pub(crate) struct AdapterList {
    object: &'static str,
    data: Vec<AdapterEntry>,
    pool: Pool,
    host_memory: HostMemory,
}

pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<AdapterList>, ApiError> {
    let registry = state.adapters().clone();
    let (infos, stats) =
        state.offload().run_blocking(move || (registry.list(), registry.stats())).await?;
    let memory = state.engine().stats().memory();
    let resident = resident(&memory);
    let PoolUse { num_chunks, free, kv, prefix, adapters, idle_adapters } = memory.pool;
    let chunk_bytes = state.engine().limits().chunk_bytes;
    let pool = Pool { chunk_bytes, chunks: num_chunks, free, kv, prefix, adapters, idle_adapters };
    Ok(Json(AdapterList {
        object: "list",
        data: infos.into_iter().map(|info| entry(info, &resident)).collect(),
        pool,
        host_memory: HostMemory { used: stats.host_bytes, budget: stats.host_budget_bytes },
    }))
}

fn resident(memory: &MemoryStats) -> HashSet<ContentHash> {
    memory.adapters.iter().filter(|one| one.is_resident).map(|one| one.hash).collect()
}

fn entry(info: AdapterInfo, resident: &HashSet<ContentHash>) -> AdapterEntry {
    let is_resident = info.content_hash.is_some_and(|hash| resident.contains(&hash));
    AdapterEntry {
        name: info.name,
        path: info.path.display().to_string(),
        tier: match info.tier {
            _ if is_resident => "device",
            AdapterTier::Host => "host",
            AdapterTier::Source => "source",
        },
        pinned: info.pinned,
        rank: info.rank,
        bytes: info.num_bytes,
        hash: info.content_hash.map(|hash| hash.to_string()),
        leases: info.num_leases,
        hits: info.hits,
        last_used: info
            .last_used
            .and_then(|time| Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())),
    }
}

/// `POST /v1/adapters/NAME/pin` and `…/unpin`: whether the adapter may leave host and device.
pub(crate) async fn act(
    State(state): State<AppState>,
    Path(path): Path<String>,
) -> Result<Json<AdapterEntry>, ApiError> {
    require_allowed(&state)?;
    let registry = state.adapters();
    let info = match path.rsplit_once('/') {
        Some((name, "pin")) => {
            registry.pin(name).await.map_err(|error| ApiError::from_resolve(&error, name))?
        }
        Some((name, "unpin")) => {
            registry.unpin(name).map_err(|error| ApiError::from_resolve(&error, name))?
        }
        _ => return Err(ApiError::unknown_route("POST", &format!("/v1/adapters/{path}"))),
    };
    settle(&state, info.content_hash).await?;
    tracing::info!(adapter = info.name, pinned = info.pinned, "adapter pinned or unpinned");
    Ok(Json(entry(info, &resident(&state.engine().stats().memory()))))
}

pub(crate) async fn load(
    State(state): State<AppState>,
    JsonBody(mut fields): JsonBody,
) -> Result<String, ApiError> {
    require_allowed(&state)?;
    let name = required(&mut fields, "lora_name")?;
    let path = required(&mut fields, "lora_path")?;
    let in_place = fields.boolean("load_inplace", false)?;
    if fields.boolean("is_3d_lora_weight", false)? {
        let message = "`is_3d_lora_weight` is not supported by this server yet";
        return Err(ApiError::unsupported("is_3d_lora_weight", message));
    }
    let before = state.adapters().get(&name).and_then(|info| info.content_hash);
    let loaded = state.adapters().load_requested(&name, &path, in_place).await;
    let info = loaded.map_err(|error| ApiError::from_load(&error, &name, &path))?;
    settle(&state, before).await?;
    settle(&state, info.content_hash).await?;
    tracing::info!(adapter = name, rank = info.rank, bytes = info.num_bytes, "adapter loaded");
    Ok(format!("Success: LoRA adapter '{name}' added successfully."))
}

pub(crate) async fn unload(
    State(state): State<AppState>,
    JsonBody(mut fields): JsonBody,
) -> Result<String, ApiError> {
    require_allowed(&state)?;
    let name = required(&mut fields, "lora_name")?;
    fields.integer("lora_int_id", i64::MIN..=i64::MAX)?;
    let before = state.adapters().get(&name).and_then(|info| info.content_hash);
    let unloaded = state.adapters().unload(&name).await;
    unloaded.map_err(|_| ApiError::unknown_adapter(&name))?;
    settle(&state, before).await?;
    tracing::info!(adapter = name, "adapter unloaded");
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
}

/// Tells the engine what the names that have this content want of it, after one of them changed.
async fn settle(state: &AppState, content: Option<ContentHash>) -> Result<(), ApiError> {
    let Some(content) = content else { return Ok(()) };
    let registry = state.adapters().clone();
    let mut infos = state.offload().run_blocking(move || registry.list()).await?;
    infos.retain(|info| info.content_hash == Some(content));
    if infos.is_empty() {
        state.engine().discard(content);
    } else {
        state.engine().set_pinned(content, infos.iter().any(|info| info.pinned));
    }
    Ok(())
}

fn require_allowed(state: &AppState) -> Result<(), ApiError> {
    if state.config().allow_runtime_adapters {
        return Ok(());
    }
    Err(ApiError::runtime_adapters_disabled())
}

/// vLLM has one class for what is missing, empty or of the wrong type here.
fn required(fields: &mut Fields, key: &'static str) -> Result<String, ApiError> {
    fields.required_string(key).map_err(ApiError::into_invalid_user_input)
}
