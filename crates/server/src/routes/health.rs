//! `/health`, `/ping`: whether the engine lives, as an empty body. `/version`: which build it is.

use crate::error::ApiError;
use crate::state::AppState;
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

pub(crate) async fn health(State(state): State<AppState>) -> Result<(), ApiError> {
    if state.engine().is_alive() {
        return Ok(());
    }
    Err(ApiError::overloaded("the engine has stopped"))
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}
