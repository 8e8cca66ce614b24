//! A step's indices in device memory: tokens, positions, slots, sequences, block tables. Laid out in
//! one buffer at fixed places, so that one copy brings them all and a recorded graph finds them again.

use crate::driver::{DevicePtr, DriverError};
use crate::gpu::{Buffer, Gpu};
use weft_kernels::attention::AttentionItem;
use weft_kernels::kv::KvSlot;
use weft_types::BlockId;

/// A slot where nothing is stored.
const NO_BLOCK: u32 = u32::MAX;
/// Rows of one item of the prefill's attention.
pub const PREFILL_ROWS: usize = 64;
/// Numbers of such an item.
const ITEM_WORDS: usize = 4;

/// The most that a step holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Tokens.
    pub max_rows: usize,
    /// Sequences.
    pub max_seqs: usize,
    /// Entries of all block tables together.
    pub max_blocks: usize,
    /// Rows of one pass over the output head.
    pub max_logit_rows: usize,
}

/// One step's indices as the host has them.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// `[T]`
    pub tokens: &'a [u32],
    /// `[T]`
    pub positions: &'a [u32],
    /// `[T]`
    pub slots: &'a [KvSlot],
    /// Pieces of sequences; consecutive ones of one sequence are put together.
    pub attention: &'a [AttentionItem],
    /// All sequences' block tables.
    pub block_tables: &'a [BlockId],
    /// Rows whose logits are wanted.
    pub logit_rows: &'a [usize],
}

impl StepInput<'_> {
    /// Whether all sequences have one row, and all rows have logits.
    #[must_use]
    pub fn is_decode(&self) -> bool {
        self.logit_rows.len() == self.tokens.len() && self.attention.len() == self.tokens.len()
    }
}

/// See the module. Addresses never change.
#[derive(Debug)]
pub struct StepTables {
    buffer: Buffer<u32>,
    staged: Vec<u32>,
    places: Places,
    /// T with padding.
    num_rows: usize,
    num_decodes: usize,
    num_prefills: usize,
    num_logit_rows: usize,
    max_context: usize,
}

/// Where each array begins, in numbers.
#[derive(Clone, Copy, Debug)]
struct Places {
    tokens: usize,
    positions: usize,
    slot_blocks: usize,
    slot_offsets: usize,
    logit_rows: usize,
    decode_rows: usize,
    contexts: usize,
    first_blocks: usize,
    items: usize,
    block_tables: usize,
    end: usize,
}

impl Places {
    fn new(limits: StepLimits) -> Self {
        let StepLimits { max_rows, max_seqs, max_blocks, .. } = limits;
        // Each begins at a multiple of 64 bytes.
        let mut end = 0;
        let mut place = |len: usize| {
            let start = end;
            end += len.next_multiple_of(16);
            start
        };
        Self {
            tokens: place(max_rows),
            positions: place(max_rows),
            slot_blocks: place(max_rows),
            slot_offsets: place(max_rows),
            logit_rows: place(max_rows),
            decode_rows: place(max_rows),
            contexts: place(max_rows),
            first_blocks: place(max_rows),
            items: place(ITEM_WORDS * (max_seqs + max_rows.div_ceil(PREFILL_ROWS))),
            block_tables: place(max_blocks),
            end,
        }
    }
}

impl StepTables {
    /// Room for the largest step.
    ///
    /// # Errors
    /// When there is not as much memory.
    pub fn new(gpu: &Gpu, limits: StepLimits) -> Result<Self, DriverError> {
        let places = Places::new(limits);
        let buffer = gpu.alloc(places.end)?;
        Ok(Self {
            buffer,
            staged: vec![0; places.end],
            places,
            num_rows: 0,
            num_decodes: 0,
            num_prefills: 0,
            num_logit_rows: 0,
            max_context: 0,
        })
    }

    /// Brings a step to the device. Rows from T up to `padded_rows` store and attend to nothing.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the step is larger than the limits.
    pub fn fill(&mut self, input: &StepInput<'_>, padded_rows: usize) -> Result<(), DriverError> {
        let places = self.places;
        let num_rows = input.tokens.len();
        assert!(padded_rows >= num_rows && padded_rows <= places.positions);
        self.num_rows = padded_rows;
        let padding = padded_rows - num_rows;
        self.put(places.tokens, input.tokens.iter().copied(), padding, 0);
        self.put(places.positions, input.positions.iter().copied(), padding, 0);
        self.put(
            places.slot_blocks,
            input.slots.iter().map(|slot| slot.block.0),
            padding,
            NO_BLOCK,
        );
        self.put(places.slot_offsets, input.slots.iter().map(|slot| slot.offset), padding, 0);
        let num_logits = input.logit_rows.len();
        let is_decode = input.is_decode();
        // A padded row has logits, too, in a decode: a recorded step computes them.
        let logit_padding = if is_decode { padding } else { 0 };
        self.num_logit_rows = num_logits + logit_padding;
        self.put(
            places.logit_rows,
            input.logit_rows.iter().map(|&row| row as u32),
            logit_padding,
            0,
        );
        self.put_sequences(input, padding);
        let used = places.block_tables + input.block_tables.len();
        assert!(used <= places.end, "more blocks than a step may have");
        for (at, block) in self.staged[places.block_tables..].iter_mut().zip(input.block_tables) {
            *at = block.0;
        }
        self.buffer.write(0, &self.staged[..used])
    }

    fn put(&mut self, start: usize, values: impl Iterator<Item = u32>, padding: usize, pad: u32) {
        let padded = values.chain(std::iter::repeat_n(pad, padding));
        for (at, value) in self.staged[start..].iter_mut().zip(padded) {
            *at = value;
        }
    }

    /// Sequences of one row are decodes, the others items of a prefill.
    fn put_sequences(&mut self, input: &StepInput<'_>, padding: usize) {
        let places = self.places;
        (self.num_decodes, self.num_prefills, self.max_context) = (0, 0, 0);
        let mut pieces = input.attention.iter().peekable();
        while let Some(&first) = pieces.next() {
            let mut num_rows = first.num_rows;
            while let Some(next) = pieces.next_if(|next| {
                next.first_block == first.first_block
                    && next.first_row == first.first_row + num_rows
                    && next.position == first.position + num_rows
            }) {
                num_rows += next.num_rows;
            }
            if num_rows == 1 {
                let context = first.position + 1;
                self.staged[places.decode_rows + self.num_decodes] = first.first_row as u32;
                self.staged[places.contexts + self.num_decodes] = context as u32;
                self.staged[places.first_blocks + self.num_decodes] = first.first_block as u32;
                self.num_decodes += 1;
                self.max_context = self.max_context.max(context);
                continue;
            }
            for start in (0..num_rows).step_by(PREFILL_ROWS) {
                let item = places.items + ITEM_WORDS * self.num_prefills;
                self.staged[item..item + ITEM_WORDS].copy_from_slice(&[
                    (first.first_row + start) as u32,
                    (num_rows - start).min(PREFILL_ROWS) as u32,
                    (first.position + start) as u32,
                    first.first_block as u32,
                ]);
                self.num_prefills += 1;
            }
        }
        if self.num_prefills == 0 {
            for index in self.num_decodes..self.num_decodes + padding {
                self.staged[places.decode_rows + index] = 0;
                self.staged[places.contexts + index] = 0;
                self.staged[places.first_blocks + index] = 0;
            }
            self.num_decodes += padding;
        }
    }

    /// T with padding.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Sequences of one row, with padding.
    #[must_use]
    pub fn num_decodes(&self) -> usize {
        self.num_decodes
    }

    /// Items of the prefill's attention.
    #[must_use]
    pub fn num_prefills(&self) -> usize {
        self.num_prefills
    }

    /// Rows whose logits are computed.
    #[must_use]
    pub fn num_logit_rows(&self) -> usize {
        self.num_logit_rows
    }

    /// The longest context of a decode.
    #[must_use]
    pub fn max_context(&self) -> usize {
        self.max_context
    }

    /// u32 `[T]`
    #[must_use]
    pub fn tokens(&self) -> DevicePtr {
        self.buffer.at(self.places.tokens)
    }

    /// u32 `[T]`
    #[must_use]
    pub fn positions(&self) -> DevicePtr {
        self.buffer.at(self.places.positions)
    }

    /// u32 `[T]`: `u32::MAX` where nothing is stored.
    #[must_use]
    pub fn slot_blocks(&self) -> DevicePtr {
        self.buffer.at(self.places.slot_blocks)
    }

    /// u32 `[T]`
    #[must_use]
    pub fn slot_offsets(&self) -> DevicePtr {
        self.buffer.at(self.places.slot_offsets)
    }

    /// u32 `[num_logit_rows]`
    #[must_use]
    pub fn logit_rows(&self) -> DevicePtr {
        self.buffer.at(self.places.logit_rows)
    }

    /// u32 `[num_decodes]` each: rows, context lengths, starts of block tables.
    #[must_use]
    pub fn decodes(&self) -> [DevicePtr; 3] {
        let Places { decode_rows, contexts, first_blocks, .. } = self.places;
        [decode_rows, contexts, first_blocks].map(|place| self.buffer.at(place))
    }

    /// `[num_prefills]` of four u32: first row, rows, position, start of the block table.
    #[must_use]
    pub fn prefill_items(&self) -> DevicePtr {
        self.buffer.at(self.places.items)
    }

    /// u32
    #[must_use]
    pub fn block_tables(&self) -> DevicePtr {
        self.buffer.at(self.places.block_tables)
    }
}
