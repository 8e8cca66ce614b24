//! The pickle of a state dict, read without executing it. In: the bytes of `data.pkl`. Out: names, and
//! where each tensor's elements lie in which storage.
//!
//! A pickle is a program that may call anything. This machine knows the few instructions that
//! `torch.save` writes for a dictionary of tensors, and three kinds of names: `OrderedDict`,
//! `_rebuild_tensor_v2` and the storages of float types. Everything else is refused by its name. All that
//! is read is kept in flat tables, so that no nesting, however deep, is recursion, and memory is in
//! proportion to the pickle's bytes.
//!
//! (candle's reader of such files was considered: it does not execute them either, but brings a whole
//! tensor library, and lets names pass that it does not know.)

use std::collections::{BTreeMap, HashMap};
use weft_types::Dtype;

/// A tensor as the pickle describes it; nothing is checked against the storage yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PickledTensor {
    pub(super) storage: Storage,
    /// In elements from the storage's start.
    pub(super) offset: usize,
    pub(super) shape: Vec<usize>,
    /// In elements, one per dimension.
    pub(super) strides: Vec<usize>,
}

/// A run of elements, a file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    /// The file's name below `data/`.
    pub(super) key: String,
    pub(super) dtype: Dtype,
    pub(super) num_elements: usize,
}

/// Runs the pickle. The error is a predicate of the file: `asks for os.system, …`.
pub(super) fn read(bytes: &[u8]) -> Result<BTreeMap<String, PickledTensor>, String> {
    let mut machine = Machine { rest: bytes, ..Machine::default() };
    let result = machine.run()?;
    let Value::Dict(dict) = result else {
        return Err("holds something else than a dictionary of tensors".to_owned());
    };
    let mut tensors = BTreeMap::new();
    for &(key, value) in &machine.dicts[dict] {
        let Value::Text(key) = key else {
            return Err("has a key that is no string".to_owned());
        };
        let key = machine.texts[key];
        let Value::Tensor(tensor) = value else {
            return Err(format!("holds something else than a tensor under {}", shown(key)));
        };
        if tensors.insert(key.to_owned(), machine.tensors[tensor].clone()).is_some() {
            return Err(format!("holds {} twice", shown(key)));
        }
    }
    Ok(tensors)
}

/// What stands on the stack; numbers are indices of [`Machine`]'s tables.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    Mark,
    None,
    Bool,
    Int(i64),
    Text(usize),
    Tuple(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
}

/// The names that a pickle may ask for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    Storage(Dtype),
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self, String> {
        match (module, name) {
            ("collections", "OrderedDict") => Ok(Self::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Self::RebuildTensor),
            ("torch", "FloatStorage") => Ok(Self::Storage(Dtype::F32)),
            ("torch", "HalfStorage") => Ok(Self::Storage(Dtype::F16)),
            ("torch", "BFloat16Storage") => Ok(Self::Storage(Dtype::Bf16)),
            ("torch", storage) if storage.ends_with("Storage") => Err(format!(
                "holds a tensor in {}; only float32, float16 and bfloat16 are adapters' weights",
                shown(&format!("torch.{storage}"))
            )),
            _ => Err(format!(
                "asks for {}, which no dictionary of tensors needs; nothing was executed",
                shown(&format!("{module}.{name}"))
            )),
        }
    }
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    texts: Vec<&'a str>,
    tuples: Vec<Box<[Value]>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<Storage>,
    tensors: Vec<PickledTensor>,
}

type Step<T = ()> = Result<T, String>;

impl<'a> Machine<'a> {
    fn run(&mut self) -> Step<Value> {
        loop {
            let opcode = self.byte()?;
            match opcode {
                // PROTO, FRAME: nothing to do.
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                b'.' => return self.pop(),
                b'(' => self.stack.push(Value::Mark),
                b'N' => self.stack.push(Value::None),
                0x88 | 0x89 => self.stack.push(Value::Bool),
                b'K' => {
                    let value = self.byte()?;
                    self.stack.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(value.into()));
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.stack.push(Value::Int(value.into()));
                }
                0x8a => self.long()?,
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?);
                    self.text(length as usize)?;
                }
                0x8c => {
                    let length = self.byte()?;
                    self.text(length.into())?;
                }
                b')' => self.tuple(0)?,
                0x85..=0x87 => self.tuple(usize::from(opcode - 0x84))?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push_tuple(items);
                }
                b'}' => self.new_dict(),
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set_items(&items)?;
                }
                b'q' => {
                    let slot = self.byte()?;
                    self.memoize(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.memoize(slot)?;
                }
                0x94 => self.memoize(self.memo.len() as u32)?,
                b'h' => {
                    let slot = self.byte()?;
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.array()?);
                    self.recall(slot)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.stack.push(Value::Global(Global::find(module, name)?));
                }
                0x93 => {
                    let (name, module) = (self.pop_text()?, self.pop_text()?);
                    self.stack.push(Value::Global(Global::find(module, name)?));
                }
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                other => {
                    return Err(format!(
                        "holds the pickle instruction {other:#04x}, which no dictionary of tensors \
                         needs; nothing was executed"
                    ));
                }
            }
        }
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let Some((taken, rest)) = self.rest.split_at_checked(length) else {
            return Err("has a pickle that ends too early".to_owned());
        };
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Step<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.take(N)?);
        Ok(bytes)
    }

    fn line(&mut self) -> Step<&'a str> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or_else(malformed)?;
        let line = self.take(end)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| malformed())
    }

    fn pop(&mut self) -> Step<Value> {
        match self.stack.pop() {
            Some(Value::Mark) | None => Err(malformed()),
            Some(value) => Ok(value),
        }
    }

    fn pop_text(&mut self) -> Step<&'a str> {
        match self.pop()? {
            Value::Text(text) => Ok(self.texts[text]),
            _ => Err(malformed()),
        }
    }

    /// Everything above the last mark, in order.
    fn pop_to_mark(&mut self) -> Step<Vec<Value>> {
        let mark = self.stack.iter().rposition(|value| *value == Value::Mark);
        let mark = mark.ok_or_else(malformed)?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn text(&mut self, length: usize) -> Step {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| malformed())?;
        self.stack.push(Value::Text(self.texts.len()));
        self.texts.push(text);
        Ok(())
    }

    /// A little-endian two's complement number of as many bytes as it says.
    fn long(&mut self) -> Step {
        let length = self.byte()?;
        let bytes = self.take(length.into())?;
        if bytes.len() > 8 {
            return Err(malformed());
        }
        let is_negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut wide = if is_negative { [0xff; 8] } else { [0; 8] };
        wide[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(wide)));
        Ok(())
    }

    fn tuple(&mut self, length: usize) -> Step {
        let start = self.stack.len().checked_sub(length).ok_or_else(malformed)?;
        let items = self.stack.split_off(start);
        if items.contains(&Value::Mark) {
            return Err(malformed());
        }
        self.push_tuple(items);
        Ok(())
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Tuple(self.tuples.len()));
        self.tuples.push(items.into());
    }

    fn new_dict(&mut self) {
        self.stack.push(Value::Dict(self.dicts.len()));
        self.dicts.push(Vec::new());
    }

    /// Sets keys and values, in turn, in the dictionary on top of the stack.
    fn set_items(&mut self, items: &[Value]) -> Step {
        let Some(&Value::Dict(dict)) = self.stack.last() else { return Err(malformed()) };
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(malformed());
        }
        self.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
        Ok(())
    }

    fn memoize(&mut self, slot: u32) -> Step {
        match self.stack.last() {
            Some(Value::Mark) | None => Err(malformed()),
            Some(&value) => {
                self.memo.insert(slot, value);
                Ok(())
            }
        }
    }

    fn recall(&mut self, slot: u32) -> Step {
        let value = *self.memo.get(&slot).ok_or_else(malformed)?;
        self.stack.push(value);
        Ok(())
    }

    /// `('storage', class, key, device, number of elements)`
    fn persistent(&mut self) -> Step {
        let Value::Tuple(tuple) = self.pop()? else { return Err(malformed()) };
        let &[
            Value::Text(kind),
            Value::Global(Global::Storage(dtype)),
            Value::Text(key),
            Value::Text(_),
            num_elements,
        ] = &*self.tuples[tuple]
        else {
            return Err(malformed());
        };
        if self.texts[kind] != "storage" {
            return Err(malformed());
        }
        let storage =
            Storage { key: self.texts[key].to_owned(), dtype, num_elements: count(num_elements)? };
        self.stack.push(Value::Storage(self.storages.len()));
        self.storages.push(storage);
        Ok(())
    }

    /// Calls one of the two functions that may be called.
    fn reduce(&mut self) -> Step {
        let Value::Tuple(arguments) = self.pop()? else { return Err(malformed()) };
        let function = self.pop()?;
        let arguments = self.tuples[arguments].clone();
        match (function, &*arguments) {
            (Value::Global(Global::OrderedDict), []) => self.new_dict(),
            // Two more: whether it has a gradient, and hooks. Perhaps metadata.
            (
                Value::Global(Global::RebuildTensor),
                &[
                    Value::Storage(storage),
                    offset,
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    Value::Bool,
                    Value::Dict(hooks),
                    ..,
                ],
            ) if self.dicts[hooks].is_empty() && arguments.len() <= 7 => {
                let counts = |tuple: usize| -> Step<Vec<usize>> {
                    self.tuples[tuple].iter().map(|&value| count(value)).collect()
                };
                let tensor = PickledTensor {
                    storage: self.storages[storage].clone(),
                    offset: count(offset)?,
                    shape: counts(shape)?,
                    strides: counts(strides)?,
                };
                self.stack.push(Value::Tensor(self.tensors.len()));
                self.tensors.push(tensor);
            }
            _ => return Err(malformed()),
        }
        Ok(())
    }

    /// A state dict has an attribute with the versions of its modules, which says nothing of weights.
    fn build(&mut self) -> Step {
        let state = self.pop()?;
        let is_versions = match state {
            Value::Dict(dict) => self.dicts[dict]
                .iter()
                .all(|(key, _)| matches!(key, Value::Text(key) if self.texts[*key] == "_metadata")),
            _ => false,
        };
        match self.stack.last() {
            Some(Value::Dict(_)) if is_versions => Ok(()),
            _ => Err(malformed()),
        }
    }
}

fn count(value: Value) -> Step<usize> {
    match value {
        Value::Int(value) => usize::try_from(value).map_err(|_| malformed()),
        _ => Err(malformed()),
    }
}

fn malformed() -> String {
    "has a pickle that is not what torch.save writes for a dictionary of tensors".to_owned()
}

/// Untrusted text, short and escaped.
fn shown(text: &str) -> String {
    let short: String = text.chars().take(120).collect();
    format!("{short:?}")
}
