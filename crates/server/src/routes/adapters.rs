//! Adapters at run time: vLLM's `/v1/load_lora_adapter` and `/v1/unload_lora_adapter`, text for
//! text, and `/v1/adapters`, which lists what is there.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::JsonBody;
use crate::state::AppState;
use axum::Json;
use axum::extract::State;
use serde::Serialize;
use std::path::Path;
use weft_adapters::{AdapterInfo, AdapterState};

/// One adapter of `/v1/adapters`.
#[derive(Debug, Serialize)]
pub(crate) struct AdapterEntry {
    name: String,
    path: String,
    /// `loaded`, or `known`: in the adapter directory, loaded when first asked for.
    state: &'static str,
    rank: Option<usize>,
    bytes: usize,
    hash: Option<String>,
    /// Sequences that hold it.
    leases: usize,
}

/// All adapters.
#[derive(Debug, Serialize)]
pub(crate) struct AdapterList {
    object: &'static str,
    data: Vec<AdapterEntry>,
}

pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<AdapterList>, ApiError> {
    let registry = state.adapters().clone();
    let infos = state.offload().run_blocking(move || registry.list()).await?;
    Ok(Json(AdapterList { object: "list", data: infos.into_iter().map(entry).collect() }))
}

fn entry(info: AdapterInfo) -> AdapterEntry {
    AdapterEntry {
        name: info.name,
        path: info.path.display().to_string(),
        state: match info.state {
            AdapterState::Loaded => "loaded",
            AdapterState::Known => "known",
        },
        rank: info.rank,
        bytes: info.num_bytes,
        hash: info.content_hash.map(|hash| hash.to_string()),
        leases: info.num_leases,
    }
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
    let loaded = state.adapters().load(&name, Path::new(&path), in_place).await;
    let info = loaded.map_err(|error| ApiError::from_load(&error, &name, &path))?;
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
    let unloaded = state.adapters().unload(&name).await;
    unloaded.map_err(|_| ApiError::unknown_adapter(&name))?;
    tracing::info!(adapter = name, "adapter unloaded");
    Ok(format!("Success: LoRA adapter '{name}' removed successfully."))
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
