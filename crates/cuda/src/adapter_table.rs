//! Where an adapter's matrices lie in device memory, as the LoRA kernels read it.
//!
//! In: an adapter's layout and the addresses of its pages. Out: bytes for device memory: a record for
//! each site, then the runs of rows that find no place in them, then scales. Structs as in
//! `kernels/lora/lora.cuh`.

use crate::driver::DevicePtr;
use bytemuck::{Pod, Zeroable};
use weft_types::{AdapterLayout, Dtype, Module, PackedMatrix, Site};

/// A table begins at a multiple of this.
pub const TABLE_ALIGNMENT: usize = 16;

/// A run of rows.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct RunRecord {
    address: DevicePtr,
    first_row: u32,
    end_row: u32,
}

/// A matrix: its first run, and where the others are.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct MatrixRecord {
    first: DevicePtr,
    runs: DevicePtr,
    first_end: u32,
    num_runs: u32,
}

/// A site; all zeros if the adapter does nothing there.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
struct SiteRecord {
    a: MatrixRecord,
    b: MatrixRecord,
    scales: DevicePtr,
    gain_in: DevicePtr,
    gain_out: DevicePtr,
    scale: f32,
    rank: u32,
    a_dtype: u32,
    b_dtype: u32,
    pad: [u32; 2],
}

/// A vector by which a site's input or output is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain {
    /// `x[t,:] * gain`, `[K]`
    In,
    /// `y[t,:] * gain`, `[N]`
    Out,
}

/// The index of a site's record.
#[must_use]
pub fn site_index(site: Site, num_layers: usize) -> u32 {
    let index = match site {
        Site::Layer { layer, module } => layer as usize * Module::ALL.len() + module as usize,
        Site::LmHead => num_layers * Module::ALL.len(),
    };
    index as u32
}

/// The index of the record of the embedding's update, the last: `A:[vocab, rank]`.
#[must_use]
pub fn embedding_index(num_layers: usize) -> u32 {
    (num_layers * Module::ALL.len() + 1) as u32
}

/// Bytes of the table.
#[must_use]
pub fn table_bytes(layout: &AdapterLayout, num_layers: usize) -> usize {
    let mut num_runs = 0;
    let mut num_scales = 0;
    for update in &layout.low_rank {
        num_runs += num_other_runs(&update.a) + num_other_runs(&update.b);
        num_scales += if all_equal(&update.scales) { 0 } else { update.scales.len() };
    }
    if let Some(update) = &layout.embedding {
        num_runs += num_other_runs(&update.a) + num_other_runs(&update.b);
    }
    num_sites(num_layers) * size_of::<SiteRecord>()
        + num_runs * size_of::<RunRecord>()
        + num_scales * size_of::<f32>()
}

/// The table, to be copied to `table_address`; its pages are where `page_address` says.
///
/// # Panics
/// When the adapter has more layers.
#[must_use]
pub fn build(
    layout: &AdapterLayout,
    num_layers: usize,
    page_address: impl Fn(usize) -> DevicePtr,
    table_address: DevicePtr,
) -> Vec<u8> {
    let mut sites = vec![SiteRecord::zeroed(); num_sites(num_layers)];
    let mut runs = Runs {
        page_address,
        records: Vec::new(),
        address: table_address.add(sites.len() * size_of::<SiteRecord>()),
    };
    for update in &layout.low_rank {
        let site = &mut sites[site_index(update.site, num_layers) as usize];
        site.a = runs.push(&update.a);
        site.b = runs.push(&update.b);
        site.rank = update.rank() as u32;
        site.scale = update.scales.first().copied().unwrap_or(0.0);
        (site.a_dtype, site.b_dtype) = (code(update.a.dtype), code(update.b.dtype));
    }
    if let Some(update) = &layout.embedding {
        let site = &mut sites[embedding_index(num_layers) as usize];
        site.a = runs.push(&update.a);
        site.b = runs.push(&update.b);
        site.rank = update.b.rows as u32;
        site.scale = update.scale;
        (site.a_dtype, site.b_dtype) = (code(update.a.dtype), code(update.b.dtype));
    }
    let mut scales: Vec<f32> = Vec::new();
    let scales_address = runs.address.add(runs.records.len() * size_of::<RunRecord>());
    for update in layout.low_rank.iter().filter(|update| !all_equal(&update.scales)) {
        let site = &mut sites[site_index(update.site, num_layers) as usize];
        site.scales = scales_address.add(scales.len() * size_of::<f32>());
        scales.extend_from_slice(&update.scales);
    }
    let mut bytes = bytemuck::cast_slice(&sites).to_vec();
    bytes.extend_from_slice(bytemuck::cast_slice(&runs.records));
    bytes.extend_from_slice(bytemuck::cast_slice(&scales));
    bytes
}

/// Gives the site with this index a gain vector of f32 in device memory.
///
/// # Panics
/// When the table has no such site.
pub fn set_gain(table: &mut [u8], site_index: u32, gain: Gain, vector: DevicePtr) {
    let offset = match gain {
        Gain::In => std::mem::offset_of!(SiteRecord, gain_in),
        Gain::Out => std::mem::offset_of!(SiteRecord, gain_out),
    };
    let start = site_index as usize * size_of::<SiteRecord>() + offset;
    table[start..start + size_of::<DevicePtr>()].copy_from_slice(bytemuck::bytes_of(&vector));
}

/// Layers, the output head, the embedding.
fn num_sites(num_layers: usize) -> usize {
    num_layers * Module::ALL.len() + 2
}

fn num_other_runs(matrix: &PackedMatrix) -> usize {
    matrix.runs.len().saturating_sub(1)
}

fn all_equal(scales: &[f32]) -> bool {
    scales.iter().all(|scale| scale.to_bits() == scales[0].to_bits())
}

/// As in the kernels.
fn code(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
        Dtype::I8 => 3,
    }
}

struct Runs<F> {
    page_address: F,
    records: Vec<RunRecord>,
    /// Of the first record.
    address: DevicePtr,
}

impl<F: Fn(usize) -> DevicePtr> Runs<F> {
    fn push(&mut self, matrix: &PackedMatrix) -> MatrixRecord {
        let mut records = matrix.runs.iter().enumerate().map(|(index, run)| {
            let next = matrix.runs.get(index + 1).map_or(matrix.rows as u32, |next| next.first_row);
            RunRecord {
                address: (self.page_address)(run.page as usize).add(run.offset as usize),
                first_row: run.first_row,
                end_row: next,
            }
        });
        let first = records.next().unwrap_or_else(RunRecord::zeroed);
        let num_before = self.records.len();
        self.records.extend(records);
        MatrixRecord {
            first: first.address,
            runs: self.address.add(num_before * size_of::<RunRecord>()),
            first_end: first.end_row,
            num_runs: (self.records.len() - num_before) as u32,
        }
    }
}
