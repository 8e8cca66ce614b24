//! Rows of a step that its adapters give: embeddings of tokens, keys and values of prefixes. Found by the
//! host, because few steps have any: never a decode of ordinary tokens.

use crate::adapter::CudaAdapter;
use crate::adapter_table::prefix_index;
use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu};
use crate::ops::given_rows::{GivenRow, PrefixRow, given_rows, prefix_store};
use crate::ops::kv_cache::PagedKv;
use crate::step_ops::StepOpsConfig;
use crate::tensor::CudaTensor;
use std::ops::Range;

/// See the module.
#[derive(Debug)]
pub(crate) struct StepGiven {
    vocab_size: usize,
    prefix_site: u32,
    embeddings: Vec<GivenRow>,
    prefixes: Vec<PrefixRow>,
    device_embeddings: Buffer<GivenRow>,
    device_prefixes: Buffer<PrefixRow>,
}

impl StepGiven {
    pub(crate) fn new(gpu: &Gpu, config: &StepOpsConfig) -> Result<Self, DriverError> {
        let max_rows = config.limits.max_rows;
        Ok(Self {
            vocab_size: config.vocab_size,
            prefix_site: prefix_index(config.kv_shape.num_layers),
            embeddings: Vec::with_capacity(max_rows),
            prefixes: Vec::with_capacity(max_rows),
            device_embeddings: gpu.alloc(max_rows)?,
            device_prefixes: gpu.alloc(max_rows)?,
        })
    }

    pub(crate) fn clear(&mut self) {
        self.embeddings.clear();
        self.prefixes.clear();
    }

    /// Takes a segment of the step's tokens.
    pub(crate) fn add(&mut self, tokens: &[u32], rows: Range<usize>, adapter: &CudaAdapter) {
        let layout = adapter.layout();
        if layout.token_rows.is_none() && layout.kv_prefix.is_none() {
            return;
        }
        let num_prefix = layout.kv_prefix.as_ref().map_or(0, |prefix| prefix.num_tokens);
        for row in rows {
            let token = tokens[row];
            let index = (token as usize).checked_sub(self.vocab_size);
            let row = row as u32;
            if let Some((numbers, dtype)) = adapter.token_row(token) {
                self.embeddings.push(GivenRow { numbers, row, dtype });
            } else if index.is_some() && layout.kv_prefix.is_some() {
                self.embeddings.push(GivenRow { numbers: DevicePtr::NULL, row, dtype: 0 });
            }
            if let Some(index) = index.filter(|&index| index < num_prefix) {
                let (table, token) = (adapter.table(), index as u32);
                self.prefixes.push(PrefixRow { table, row, token });
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.embeddings.is_empty() && self.prefixes.is_empty()
    }

    pub(crate) fn upload(&mut self) -> Result<(), DriverError> {
        if !self.embeddings.is_empty() {
            self.device_embeddings.write(0, &self.embeddings)?;
        }
        if !self.prefixes.is_empty() {
            self.device_prefixes.write(0, &self.prefixes)?;
        }
        Ok(())
    }

    /// In place of what the base's table gave.
    pub(crate) fn embed(&self, gpu: &Gpu, out: &CudaTensor) -> Result<(), DriverError> {
        let rows = (self.device_embeddings.ptr(), self.embeddings.len());
        // SAFETY: rows are those of the step, which `out` has; the batch holds their adapters.
        unsafe { given_rows(gpu, rows, (out.ptr(), out.width())) }
    }

    /// In place of the computed keys and values; `places` are the rows' blocks and offsets.
    pub(crate) fn store(
        &self,
        gpu: &Gpu,
        kv: &PagedKv,
        places: [DevicePtr; 2],
    ) -> Result<(), DriverError> {
        let rows = (self.device_prefixes.ptr(), self.prefixes.len());
        // SAFETY: rows are those of the step and have places of their own; the batch holds their
        // adapters.
        unsafe { prefix_store(gpu, kv, rows, places, self.prefix_site) }
    }
}
