//! `/v1/models` and `/v1/models/{id}`: the base and its adapters as cards. An adapter's card has
//! the base as `parent` and its path as `root`.

use crate::error::ApiError;
use crate::state::AppState;
use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;
use weft_adapters::AdapterInfo;

/// A model that requests may name.
#[derive(Debug, Serialize)]
pub(crate) struct ModelCard {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    root: String,
    parent: Option<String>,
    max_model_len: usize,
    permission: [(); 0],
}

/// All cards.
#[derive(Debug, Serialize)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

pub(crate) async fn list(State(state): State<AppState>) -> Result<Json<ModelList>, ApiError> {
    let registry = state.adapters().clone();
    let adapters = state.offload().run_blocking(move || registry.list()).await?;
    let bases = state.config().served_model_names.iter().map(|name| base_card(&state, name));
    let adapters = adapters.into_iter().map(|info| adapter_card(&state, info));
    Ok(Json(ModelList { object: "list", data: bases.chain(adapters).collect() }))
}

pub(crate) async fn retrieve(
    State(state): State<AppState>,
    Path(id): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    if state.is_base(&id) {
        return Ok(Json(base_card(&state, &id)));
    }
    let (registry, name) = (state.adapters().clone(), id.clone());
    let info = state.offload().run_blocking(move || registry.get(&name)).await?;
    info.map(|info| Json(adapter_card(&state, info))).ok_or_else(|| ApiError::unknown_model(&id))
}

fn base_card(state: &AppState, name: &str) -> ModelCard {
    card(state, name.to_owned(), state.config().base_root.clone(), None)
}

fn adapter_card(state: &AppState, info: AdapterInfo) -> ModelCard {
    let parent = state.config().base_name().to_owned();
    card(state, info.name, info.path.display().to_string(), Some(parent))
}

fn card(state: &AppState, id: String, root: String, parent: Option<String>) -> ModelCard {
    ModelCard {
        id,
        object: "model",
        created: state.started_unix(),
        owned_by: "weft",
        root,
        parent,
        max_model_len: state.max_model_len(),
        permission: [],
    }
}
