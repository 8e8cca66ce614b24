//! Writes small GGUF files for tests, right ones and wrong ones.

/// The parts of a file, each already encoded, with the counts that the header claims.
#[derive(Clone, Default)]
pub(crate) struct FileBuilder {
    pub(crate) version: u32,
    pub(crate) num_keys: u64,
    pub(crate) num_tensors: u64,
    pub(crate) keys: Vec<u8>,
    pub(crate) tensors: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn string(text: &[u8]) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

pub(crate) fn string_array(strings: &[&str]) -> Vec<u8> {
    let mut out = [8_u32.to_le_bytes().as_slice(), &(strings.len() as u64).to_le_bytes()].concat();
    strings.iter().for_each(|text| out.extend(string(text.as_bytes())));
    out
}

pub(crate) fn i32_array(values: &[i32]) -> Vec<u8> {
    let mut out = [5_u32.to_le_bytes().as_slice(), &(values.len() as u64).to_le_bytes()].concat();
    values.iter().for_each(|value| out.extend(value.to_le_bytes()));
    out
}

impl FileBuilder {
    pub(crate) fn new() -> Self {
        Self { version: 3, ..Self::default() }
    }

    pub(crate) fn key(mut self, key: &str, value_type: u32, value: &[u8]) -> Self {
        self.keys.extend(string(key.as_bytes()));
        self.keys.extend(value_type.to_le_bytes());
        self.keys.extend(value);
        self.num_keys += 1;
        self
    }

    /// A table entry; the data is appended by [`FileBuilder::data`].
    pub(crate) fn tensor(mut self, name: &[u8], dims: &[u64], dtype: u32, offset: u64) -> Self {
        self.tensors.extend(string(name));
        self.tensors.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| self.tensors.extend(dim.to_le_bytes()));
        self.tensors.extend(dtype.to_le_bytes());
        self.tensors.extend(offset.to_le_bytes());
        self.num_tensors += 1;
        self
    }

    pub(crate) fn data(mut self, data: &[u8]) -> Self {
        self.data.extend(data);
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.num_tensors.to_le_bytes());
        out.extend(self.num_keys.to_le_bytes());
        out.extend(&self.keys);
        out.extend(&self.tensors);
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }
}

/// One of everything.
pub(crate) fn good_file() -> FileBuilder {
    FileBuilder::new()
        .key("general.architecture", 8, &string(b"llama"))
        .key("general.alignment", 4, &32_u32.to_le_bytes())
        .key("some.u8", 0, &[200])
        .key("some.i8", 1, &[0xfe])
        .key("some.i64", 11, &(-5_i64).to_le_bytes())
        .key("some.f32", 6, &1.5_f32.to_le_bytes())
        .key("some.f64", 12, &2.5_f64.to_le_bytes())
        .key("some.bool", 7, &[1])
        .key("some.strings", 9, &string_array(&["a", "", "bcd"]))
        .key("some.numbers", 9, &i32_array(&[1, 2, 3]))
        .key("some.negatives", 9, &i32_array(&[-1, 2]))
        .tensor(b"first", &[32, 2], 3, 0)
        .tensor(b"second", &[3], 0, 64)
        .data(&[7; 64])
        .data(&[9; 12])
}
