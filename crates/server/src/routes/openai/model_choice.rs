//! In: the fields `model` and `adapters`. Out: what a request asks to be computed with. Knows not which
//! adapters there are.

use crate::error::ApiError;
use crate::fields::Fields;
use crate::state::AppState;
use std::sync::Arc;
use weft_adapters::{AdapterLease, Composition, CompositionPart, MAX_PARTS, MAX_SCALE};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelChoice {
    /// The base, an adapter, or a formula: `a+0.5*b`.
    pub(super) model: String,
    /// Adapters that are added to the base.
    pub(super) adapters: Option<Composition>,
}

impl ModelChoice {
    /// `model`, and `adapters`: a list of `{"name": …, "scale": …}`, whose scales are 1 if they are not
    /// given.
    pub(super) fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        let model = fields.required_string("model")?;
        let items = fields.list("adapters", MAX_PARTS)?.unwrap_or_default();
        let mut parts = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("adapters[{index}]");
            let mut item = Fields::of(item, &path)?;
            let name = item.required_string("name")?;
            let range = -f64::from(MAX_SCALE)..=f64::from(MAX_SCALE);
            let scale = item.number("scale", range)?.unwrap_or(1.0) as f32;
            if let Some(unknown) = item.unknown().first() {
                let message = format!("`{unknown}` is not known; `{path}` has `name` and `scale`");
                return Err(ApiError::invalid(unknown, message));
            }
            parts.push(CompositionPart { name, scale });
        }
        let composition = (!parts.is_empty()).then(|| Composition::new(parts)).transpose();
        let adapters =
            composition.map_err(|error| ApiError::invalid("adapters", error.to_string()))?;
        Ok(Self { model, adapters })
    }

    /// What is computed with, leased; `None` is the bare base.
    pub(super) async fn resolve(
        &self,
        state: &AppState,
        tenant: &Arc<str>,
    ) -> Result<Option<AdapterLease>, ApiError> {
        let Some(adapters) = &self.adapters else {
            return state.resolve(&self.model, tenant).await;
        };
        if !state.is_base(&self.model) {
            let message = format!(
                "`adapters` are added to the base: set `model` to `{}`, and list `{}` in `adapters` if \
                 it is one of them",
                state.config().base_name(),
                self.model,
            );
            return Err(ApiError::invalid("adapters", message));
        }
        let lease = state.adapters().resolve_composition(adapters.clone(), tenant).await;
        lease.map(Some).map_err(|error| {
            ApiError::from_resolve(&error, &adapters.to_string()).of_param("adapters")
        })
    }
}
