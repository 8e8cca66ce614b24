//! The weights of the base for adapters that need them at load (DoRA, trained biases, heads and tokens).
//!
//! On the CPU they are in memory anyhow. A GPU's are not kept: a second copy on the host would cost as
//! much memory again for what few adapters need and only while they load. The checkpoint stays open
//! instead, and a linear is packed anew when an adapter asks for it.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;
use weft_adapters::{BaseLinear, BaseWeights};
use weft_kernels::PackedLinear;
use weft_model::{Checkpoint, ModelError, ModelWeights, Quantize};
use weft_types::Site;

/// Weights that the CPU computes with.
#[must_use]
pub fn in_memory(weights: &Arc<ModelWeights<PackedLinear>>) -> Arc<dyn BaseWeights> {
    Arc::new(InMemory(Arc::clone(weights)))
}

/// Weights that were loaded from `path` and `quantize`d, and are not kept.
///
/// # Errors
/// A sentence about the checkpoint, if it cannot be opened again.
pub fn of_checkpoint(path: &Path, quantize: Quantize) -> Result<Arc<dyn BaseWeights>, ModelError> {
    Ok(Arc::new(OnDisk(Checkpoint::open(path, quantize)?)))
}

#[derive(Debug)]
struct InMemory(Arc<ModelWeights<PackedLinear>>);

struct Borrowed<'a>(&'a PackedLinear);

impl BaseLinear for Borrowed<'_> {
    fn row_into(&self, row: usize, out: &mut [f32]) {
        self.0.dequantize_row_into(row, out);
    }
}

impl BaseWeights for InMemory {
    fn linear(&self, site: Site) -> io::Result<Box<dyn BaseLinear + '_>> {
        let linear = self.0.linear(site).ok_or_else(|| io::Error::other("no such layer"))?;
        Ok(Box::new(Borrowed(linear)))
    }

    fn bias(&self, site: Site) -> io::Result<Option<Vec<f32>>> {
        Ok(self.0.bias(site).cloned())
    }
}

#[derive(Debug)]
struct OnDisk(Checkpoint);

struct Owned(PackedLinear);

impl BaseLinear for Owned {
    fn row_into(&self, row: usize, out: &mut [f32]) {
        self.0.dequantize_row_into(row, out);
    }
}

impl BaseWeights for OnDisk {
    fn linear(&self, site: Site) -> io::Result<Box<dyn BaseLinear + '_>> {
        Ok(Box::new(Owned(self.0.linear(site).map_err(io::Error::other)?)))
    }

    fn bias(&self, site: Site) -> io::Result<Option<Vec<f32>>> {
        self.0.bias(site).map_err(io::Error::other)
    }
}
