//! From a formula to a lease: what it means here, and a load whose source is other adapters: hold the
//! parts, wait for room, concatenate, publish.
//!
//! Parts that are not in memory are loaded first, by loads of their own. While it waits for room a
//! composition holds its parts, so two of them may wait for each other: then one gives up when its
//! patience ends, and says so.

use crate::compose::{Part, compose};
use crate::composition::{Composition, Formula, refused};
use crate::error::{AdapterError, Refusal};
use crate::lease::{AdapterLease, Hold};
use crate::loads::{Lowered, MAX_ATTEMPTS, Outcome, Shared, Ticket};
use crate::polite::thread_cpu_time;
use crate::registry::{AdapterRegistry, AfterFailure};
use crate::state::{Freed, Origin};
use std::sync::Arc;
use std::time::Instant;
use weft_types::ContentHash;

impl AdapterRegistry {
    /// The sum of several adapters, leased: one adapter with an identity of its own, composed if it is
    /// not in memory or if a part is not what it was. It has no name and is not listed; [`Self::load`]
    /// with the path `compose:` and the formula gives it one.
    ///
    /// # Errors
    /// [`AdapterError::MissingPart`], [`AdapterError::Rejected`] for parts that do not add up, and what
    /// [`Self::resolve`] may say of a part.
    pub async fn resolve_composition(
        &self,
        composition: Composition,
        tenant: &Arc<str>,
    ) -> Result<AdapterLease, AdapterError> {
        if let Some(name) = composition.single() {
            return self.lease(name, None, tenant).await;
        }
        let composition = Arc::new(composition);
        self.lease(&composition.key(), Some(&composition), tenant).await
    }

    /// Reads a formula; names with a `+` must not make it ambiguous.
    pub(crate) async fn read(&self, text: &str) -> Result<Composition, AdapterError> {
        let Some(formula) = Formula::of(text) else {
            let reason = "is none; write names with + between them, like a+0.5*b";
            return Err(refused(text, reason.to_owned()));
        };
        let composition = formula.read()?;
        let Some(name) = self.first_existing(formula.other_names()).await else {
            return Ok(composition);
        };
        let reason = format!(
            "is ambiguous, because there is an adapter {name:?}; send the field `adapters` with names \
             and scales instead"
        );
        Err(refused(text, reason))
    }

    /// The first of `names` that an adapter has, is about to have, or has in the adapter directory.
    pub(crate) async fn first_existing(&self, names: Vec<String>) -> Option<String> {
        let unknown: Vec<String> = {
            let state = self.shared.state.lock();
            let is_known =
                |name: &str| state.names.contains_key(name) || state.loading.contains_key(name);
            if let Some(known) = names.iter().find(|name| is_known(name)) {
                return Some(known.clone());
            }
            names.into_iter().filter(|name| !state.revoked.contains(name)).collect()
        };
        if self.shared.directory.is_none() || unknown.is_empty() {
            return None;
        }
        let shared = Arc::clone(&self.shared);
        let find = move || {
            let directory = shared.directory.as_ref()?;
            unknown.into_iter().find(|name| directory.has(name))
        };
        tokio::task::spawn_blocking(find).await.ok().flatten()
    }
}

impl Ticket {
    pub(crate) async fn compose(&self, composition: &Arc<Composition>) -> Outcome {
        let holds = self.hold_parts(composition).await?;
        let contents: Vec<ContentHash> =
            holds.iter().map(|hold| hold.resident.weights.content_hash).collect();
        let names = composition.parts().iter().map(|part| Arc::from(part.name.as_str()));
        let parts: Vec<(Arc<str>, ContentHash)> = names.zip(contents.iter().copied()).collect();
        let content_hash = composition.content_hash(&contents);
        let located = self.nowhere(composition);
        let held: usize = holds.iter().map(|hold| hold.resident.weights.num_bytes).sum();
        let (mut num_bytes, mut failure) = (held, self.memory_full(held));
        for _ in 0..MAX_ATTEMPTS {
            let began = Instant::now();
            let composed = match self.shared.in_memory(&content_hash) {
                Some(hold) => Lowered::InMemory(hold),
                None => {
                    self.check_budget(held + num_bytes)?;
                    self.shared.pacer.turn(&self.tenant).await;
                    self.reserve(num_bytes).await?;
                    self.concatenate(composition, &holds, content_hash).await?
                }
            };
            let seconds = began.elapsed().as_secs_f64();
            let mut freed = Freed::default();
            let published =
                self.publish(located.clone(), composed, parts.clone(), seconds, &mut freed);
            freed.drop_elsewhere().await;
            match published {
                Ok(published) => return published,
                // Wider types than those of the parts.
                Err(packed_bytes) => {
                    num_bytes = packed_bytes;
                    failure = self.memory_full(packed_bytes);
                }
            }
        }
        Err(failure)
    }

    /// The parts in their order, in memory until the holds are dropped.
    async fn hold_parts(&self, composition: &Composition) -> Result<Vec<Hold>, AdapterError> {
        let registry = AdapterRegistry::of(Arc::clone(&self.shared));
        let mut holds = Vec::with_capacity(composition.parts().len());
        for part in composition.parts() {
            let known = self.shared.state.lock().names.get(&*part.name).map(|k| k.origin.clone());
            if matches!(known, Some(Origin::Composed(_))) {
                let reason = format!("names the composition {:?}; name its parts", part.name);
                return Err(refused(&composition.to_string(), reason));
            }
            let held = registry.acquire(&part.name, None, &self.tenant, AfterFailure::Remember);
            let (_generation, hold) = held.await.map_err(|error| match error {
                AdapterError::NotFound { name } | AdapterError::NotInSource { name, .. } => {
                    let formula = format!("{:?}", composition.to_string());
                    AdapterError::MissingPart { formula, part: name }
                }
                other => other,
            })?;
            holds.push(hold);
        }
        Ok(holds)
    }

    /// Whether parts and whole could ever be in memory together.
    fn check_budget(&self, num_bytes: usize) -> Result<(), AdapterError> {
        match self.shared.config.host_memory_bytes {
            Some(budget) if num_bytes > budget => Err(self.memory_too_small(num_bytes)),
            _ => Ok(()),
        }
    }

    async fn concatenate(
        &self,
        composition: &Arc<Composition>,
        holds: &[Hold],
        content_hash: ContentHash,
    ) -> Result<Lowered, AdapterError> {
        let lowering = self.shared.lowerings.acquire().await.map_err(|_| self.interrupted())?;
        let (composition, holds) = (Arc::clone(composition), holds.to_vec());
        let work = move |shared: &Arc<Shared>, _: &str| {
            let parts = composition.parts().iter().zip(&holds).map(|(part, hold)| Part {
                name: &part.name,
                scale: part.scale,
                weights: &hold.resident.weights,
            });
            let (chunk_bytes, max_rank) = (shared.config.chunk_bytes, shared.config.max_lora_rank);
            let parts: Vec<_> = parts.collect();
            let composed = compose(&parts, content_hash, chunk_bytes, max_rank);
            (composed, thread_cpu_time())
        };
        let (composed, time) = self.blocking(work).await?;
        drop(lowering);
        self.shared.pacer.spent(time);
        composed.map(Lowered::Packed).map_err(|refusal: Refusal| refusal.of(&self.label()))
    }
}
