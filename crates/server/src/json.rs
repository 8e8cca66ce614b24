//! In: a request's body. Out: its [`Fields`], or an error in OpenAI's shape.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::state::AppState;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};

/// The fields of a JSON body.
pub(crate) struct JsonBody(pub(crate) Fields);

impl FromRequest<AppState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        // Browsers may send other types to any host without asking it first.
        require_json(request.headers())?;
        let max_body_bytes = state.config().max_body_bytes;
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| ApiError::from_body(&rejection, max_body_bytes))?;
        Fields::parse(&bytes).map(Self)
    }
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or("none");
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::not_json(content_type))
}
