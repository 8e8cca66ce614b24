//! One row of the tensor table: name, shape, element type and place in the data section, checked
//! against itself. Whether it fits the file is checked in `header`.

use crate::cursor::Cursor;
use crate::error::GgufError;
use crate::ggml_type::GgmlType;

/// Where a tensor is and how to read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name in the file, e.g. `blk.0.attn_q.weight`.
    pub name: String,
    /// 1 to 4 dimensions, none zero; `shape[0]` is the contiguous one.
    pub shape: Vec<usize>,
    /// How its elements are stored.
    pub dtype: GgmlType,
    /// Byte offset in the file's data section.
    pub offset: u64,
    /// Bytes in the file; 0 when `dtype` has a number that ggml does not define.
    pub num_bytes: usize,
}

impl TensorInfo {
    /// Product of the shape.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// # Errors
    /// [`GgufError::UnsupportedType`] when Weft cannot read this tensor's elements.
    pub fn require_supported(&self) -> Result<(), GgufError> {
        if self.dtype.is_supported() {
            return Ok(());
        }
        Err(GgufError::UnsupportedType { name: self.name.clone(), dtype: self.dtype })
    }

    pub(crate) fn parse(cursor: &mut Cursor<'_>) -> Result<Self, GgufError> {
        const WHAT: &str = "an entry of the tensor table";
        let position = cursor.position();
        let name = cursor.text(WHAT)?.to_owned();
        if name.is_empty() {
            return Err(GgufError::EmptyTensorName { position });
        }
        let num_dims = cursor.u32(WHAT)?;
        if !(1..=4).contains(&num_dims) {
            return Err(GgufError::NumDims { name, num_dims });
        }
        let dims = (0..num_dims).map(|_| cursor.u64(WHAT)).collect::<Result<Vec<_>, _>>()?;
        let dtype = GgmlType::from_number(cursor.u32(WHAT)?);
        let offset = cursor.u64(WHAT)?;

        let shape = dims.iter().map(|&dim| usize::try_from(dim).ok().filter(|&dim| dim > 0));
        let shape = shape.collect::<Option<Vec<usize>>>();
        let num_elements = shape.as_deref().and_then(|shape| {
            shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim))
        });
        let (Some(shape), Some(num_elements)) = (shape, num_elements) else {
            return Err(GgufError::Shape { name, shape: dims });
        };
        let num_bytes = match (dtype.block_len(), dtype.block_bytes()) {
            (Some(block_len), Some(block_bytes)) => {
                let row = shape.first().copied().unwrap_or_default();
                if !row.is_multiple_of(block_len) {
                    return Err(GgufError::PartialBlock { name, row, dtype, block_len });
                }
                let num_bytes = (num_elements / block_len).checked_mul(block_bytes);
                num_bytes.ok_or(GgufError::Shape { name: name.clone(), shape: dims })?
            }
            _ => 0,
        };
        Ok(Self { name, shape, dtype, offset, num_bytes })
    }
}
