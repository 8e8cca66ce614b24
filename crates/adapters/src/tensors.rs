//! The bytes of a safetensors file → tensors by name. Untrusted: a header that lies about sizes, says
//! a thing twice or leaves bytes unexplained is refused. Knows no LoRA.

use crate::error::Refusal;
use crate::json::parse;
use crate::quoted::Quoted;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use weft_types::Dtype;

/// Far above the header of the largest adapter, which has some thousand tensors.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// A tensor of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FileTensor<'a> {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Row-major, little-endian, as many bytes as shape and dtype say.
    pub(crate) data: &'a [u8],
}

/// Reads the whole file.
pub(crate) fn read_tensors(bytes: &[u8]) -> Result<BTreeMap<String, FileTensor<'_>>, Refusal> {
    check_header(bytes)?;
    let file = SafeTensors::deserialize(bytes).map_err(|cause| damaged(cause.to_string()))?;
    file.iter()
        .map(|(name, view)| {
            let dtype = match view.dtype() {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::F16 => Dtype::F16,
                safetensors::Dtype::BF16 => Dtype::Bf16,
                other => {
                    return Err(Refusal::new(format!(
                        "holds tensor {} in {other:?}; save it in float32, float16 or bfloat16",
                        Quoted(name)
                    )));
                }
            };
            let tensor = FileTensor { dtype, shape: view.shape().to_vec(), data: view.data() };
            Ok((name.to_owned(), tensor))
        })
        .collect()
}

/// What the crate does not say in words, and the one thing it does not see: a name given twice.
fn check_header(bytes: &[u8]) -> Result<(), Refusal> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(damaged(format!("it has {} bytes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(damaged(format!("it claims a header of {length} bytes")));
    }
    let Some(header) = usize::try_from(length).ok().and_then(|length| rest.get(..length)) else {
        let found = rest.len();
        return Err(damaged(format!("it claims a header of {length} bytes, but {found} follow")));
    };
    match parse(header) {
        Ok(_) => Ok(()),
        Err(cause) => Err(damaged(format!("its header is not valid JSON: {cause}"))),
    }
}

fn damaged(why: String) -> Refusal {
    Refusal::new(format!("has a damaged adapter_model.safetensors: {why}"))
}
