//! Where an adapter's matrices and vectors lie in device memory, as the LoRA kernels read it.
//!
//! In: an adapter's layout and the addresses of its pages. Out: bytes for device memory: a record for
//! each site, then the runs of rows that find no place in them, then scales. Structs as in
//! `kernels/lora/lora.cuh`.

use crate::driver::DevicePtr;
use bytemuck::{Pod, Zeroable};
use weft_types::{Activation, AdapterLayout, BottleneckInput, Dtype, Module, PackedMatrix, Site};

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
    shift: DevicePtr,
    h_bias: DevicePtr,
    h_scales: DevicePtr,
    scale: f32,
    rank: u32,
    a_dtype: u32,
    b_dtype: u32,
    activation: u32,
    num_tokens: u32,
    pad: [u32; 2],
}

/// A vector by which a site's input or output is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain {
    /// `x[t,:] * gain`, `[K]`
    In,
    /// `y[t,:] * gain + shift`, `[N]`
    Out,
}

/// What an adapter does at a site beside a low-rank update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SiteParts(u8);

impl SiteParts {
    /// The base's input is multiplied.
    pub const INPUT_GAIN: Self = Self(1);
    /// The output is multiplied or shifted.
    pub const OUTPUT: Self = Self(2);
    /// A bottleneck reads the output.
    pub const BOTTLENECK: Self = Self(4);
    /// A bottleneck reads the residual stream, to which the output was added.
    pub const RESIDUAL_BOTTLENECK: Self = Self(8);

    /// Whether it has any of these.
    #[must_use]
    pub fn has(self, parts: Self) -> bool {
        self.0 & parts.0 != 0
    }

    /// Both.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
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

/// The index of the record of the embedding's update: `A:[vocab, rank]`.
#[must_use]
pub fn embedding_index(num_layers: usize) -> u32 {
    (num_layers * Module::ALL.len() + 1) as u32
}

/// The index of the record of given keys and values: `A:[layers * 2 * tokens, kv heads * head dim]`, its
/// rank the number of tokens.
#[must_use]
pub fn prefix_index(num_layers: usize) -> u32 {
    embedding_index(num_layers) + 1
}

/// The index of the record of the bottleneck behind the linear with this index that reads this: behind O
/// or Down of a layer, `None` elsewhere. Of the two kinds an adapter has one, the other's rank is 0.
#[must_use]
pub fn bottleneck_index(site_index: u32, num_layers: usize, reads: BottleneckInput) -> Option<u32> {
    let (layer, module) =
        (site_index / Module::ALL.len() as u32, site_index % Module::ALL.len() as u32);
    let of_layer = match module {
        module if module == Module::O as u32 => 0,
        module if module == Module::Down as u32 => 1,
        _ => return None,
    };
    let of_kind = match reads {
        BottleneckInput::Output => 0,
        BottleneckInput::Residual => 2 * num_layers as u32,
    };
    let first = prefix_index(num_layers) + 1 + of_kind;
    ((layer as usize) < num_layers).then(|| first + 2 * layer + of_layer)
}

/// What an adapter does at each site beside low-rank updates, by [`site_index`]; empty if nothing.
///
/// # Panics
/// When the adapter has more layers.
#[must_use]
pub fn site_parts(layout: &AdapterLayout, num_layers: usize) -> Box<[SiteParts]> {
    if layout.vectors.is_empty() && layout.bottlenecks.is_empty() {
        return Box::default();
    }
    let mut parts = vec![SiteParts::default(); embedding_index(num_layers) as usize];
    let mut add = |site: Site, part: SiteParts| {
        let parts = &mut parts[site_index(site, num_layers) as usize];
        *parts = parts.or(part);
    };
    for vectors in &layout.vectors {
        if vectors.input.is_some() {
            add(vectors.site, SiteParts::INPUT_GAIN);
        }
        if vectors.output.is_some() || vectors.shift.is_some() {
            add(vectors.site, SiteParts::OUTPUT);
        }
    }
    for bottleneck in &layout.bottlenecks {
        let part = match bottleneck.reads {
            BottleneckInput::Output => SiteParts::BOTTLENECK,
            BottleneckInput::Residual => SiteParts::RESIDUAL_BOTTLENECK,
        };
        add(bottleneck.site, part);
    }
    parts.into()
}

/// Bytes of the table.
#[must_use]
pub fn table_bytes(layout: &AdapterLayout, num_layers: usize) -> usize {
    let num_scales: usize = listed_scales(layout).map(<[f32]>::len).sum();
    num_sites(num_layers) * size_of::<SiteRecord>()
        + num_runs(layout) * size_of::<RunRecord>()
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
    let runs_address = table_address.add(sites.len() * size_of::<SiteRecord>());
    let mut runs = Runs { page_address, records: Vec::new(), address: runs_address };
    let scales_address = runs_address.add(num_runs(layout) * size_of::<RunRecord>());
    let mut scales = Scales { values: Vec::new(), address: scales_address };
    for update in &layout.low_rank {
        let site = &mut sites[site_index(update.site, num_layers) as usize];
        runs.put(site, &update.a, &update.b);
        scales.put(site, &update.scales);
    }
    if let Some(update) = &layout.embedding {
        let site = &mut sites[embedding_index(num_layers) as usize];
        runs.put(site, &update.a, &update.b);
        (site.scale, site.num_tokens) = (update.scale, update.a.rows as u32);
    }
    for vectors in &layout.vectors {
        let site = &mut sites[site_index(vectors.site, num_layers) as usize];
        let address = |vector: &Option<PackedMatrix>| {
            vector.as_ref().map_or(DevicePtr::NULL, |vector| runs.vector(vector))
        };
        site.gain_in = address(&vectors.input);
        site.gain_out = address(&vectors.output);
        site.shift = address(&vectors.shift);
    }
    for bottleneck in &layout.bottlenecks {
        let linear = site_index(bottleneck.site, num_layers);
        let index = bottleneck_index(linear, num_layers, bottleneck.reads)
            .expect("bottlenecks are behind O and Down");
        let site = &mut sites[index as usize];
        runs.put(site, &bottleneck.a, &bottleneck.b);
        scales.put(site, &bottleneck.a_scales);
        if !are_ones(&bottleneck.b_scales) {
            site.h_scales = scales.push(&bottleneck.b_scales);
        }
        site.h_bias = runs.vector(&bottleneck.a_bias);
        site.shift = runs.vector(&bottleneck.b_bias);
        site.activation = activation_code(bottleneck.activation);
    }
    if let Some(prefix) = &layout.kv_prefix {
        let site = &mut sites[prefix_index(num_layers) as usize];
        site.a = runs.push(&prefix.rows);
        (site.rank, site.a_dtype) = (prefix.num_tokens as u32, code(prefix.rows.dtype));
    }
    let mut bytes = bytemuck::cast_slice(&sites).to_vec();
    bytes.extend_from_slice(bytemuck::cast_slice(&runs.records));
    bytes.extend_from_slice(bytemuck::cast_slice(&scales.values));
    bytes
}

/// Layers, the output head, the embedding, given keys and values, bottlenecks.
fn num_sites(num_layers: usize) -> usize {
    prefix_index(num_layers) as usize + 1 + 4 * num_layers
}

/// Runs of matrices beside the first, which stands in the record.
fn num_runs(layout: &AdapterLayout) -> usize {
    let low_rank = layout.low_rank.iter().flat_map(|update| [&update.a, &update.b]);
    let embedding = layout.embedding.iter().flat_map(|update| [&update.a, &update.b]);
    let bottlenecks = layout.bottlenecks.iter().flat_map(|b| [&b.a, &b.b]);
    let prefix = layout.kv_prefix.iter().map(|prefix| &prefix.rows);
    let matrices = low_rank.chain(embedding).chain(bottlenecks).chain(prefix);
    matrices.map(|matrix| matrix.runs.len().saturating_sub(1)).sum()
}

/// Scales that find no place in the record.
fn listed_scales(layout: &AdapterLayout) -> impl Iterator<Item = &[f32]> {
    let low_rank = layout.low_rank.iter().map(|update| &*update.scales);
    let of_a = layout.bottlenecks.iter().map(|bottleneck| &*bottleneck.a_scales);
    let of_b = layout.bottlenecks.iter().map(|bottleneck| &*bottleneck.b_scales);
    let several = low_rank.chain(of_a).filter(|scales| !all_equal(scales));
    several.chain(of_b.filter(|scales| !are_ones(scales)))
}

fn all_equal(scales: &[f32]) -> bool {
    scales.iter().all(|scale| scale.to_bits() == scales[0].to_bits())
}

fn are_ones(scales: &[f32]) -> bool {
    scales.iter().all(|scale| scale.to_bits() == 1.0f32.to_bits())
}

/// As in the kernels.
pub(crate) fn code(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
        Dtype::I8 => 3,
    }
}

/// As in the kernels.
fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Relu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Silu => 3,
        Activation::Tanh => 4,
        Activation::Identity => 5,
    }
}

struct Runs<F> {
    page_address: F,
    records: Vec<RunRecord>,
    /// Of the first record.
    address: DevicePtr,
}

impl<F: Fn(usize) -> DevicePtr> Runs<F> {
    fn put(&mut self, site: &mut SiteRecord, a: &PackedMatrix, b: &PackedMatrix) {
        (site.a, site.b) = (self.push(a), self.push(b));
        (site.a_dtype, site.b_dtype) = (code(a.dtype), code(b.dtype));
        site.rank = b.rows as u32;
    }

    /// A matrix of one row.
    fn vector(&self, matrix: &PackedMatrix) -> DevicePtr {
        let first = matrix.runs.first();
        first.map_or(DevicePtr::NULL, |run| {
            (self.page_address)(run.page as usize).add(run.offset as usize)
        })
    }

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

struct Scales {
    values: Vec<f32>,
    /// Of the first.
    address: DevicePtr,
}

impl Scales {
    /// In the record if all are one number.
    fn put(&mut self, site: &mut SiteRecord, scales: &[f32]) {
        site.scale = scales.first().copied().unwrap_or(0.0);
        if !all_equal(scales) {
            site.scales = self.push(scales);
        }
    }

    fn push(&mut self, scales: &[f32]) -> DevicePtr {
        let address = self.address.add(self.values.len() * size_of::<f32>());
        self.values.extend_from_slice(scales);
        address
    }
}
