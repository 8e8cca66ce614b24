//! Reads traces, one line at a time. In: bytes from anywhere. Out: requests, or a sentence with the
//! number of the line; never a panic, and never more than one line in memory.

use crate::{TRACE_VERSION, TraceAdapter, TraceHeader, TraceLine, TraceRequest, to_microsecond};
use std::collections::HashMap;
use std::io::{self, BufRead, Read};

/// Longer lines are refused: a header of a hundred thousand adapters fits.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Later arrivals are refused: thirty years. Keeps microseconds exact.
const MAX_ARRIVAL_S: f64 = 1e9;

/// Why a trace cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// What a line says makes no sense.
    #[error("line {number}: {reason}")]
    Line {
        /// From 1.
        number: u64,
        /// What is wrong with it.
        reason: LineError,
    },
    /// The bytes did not come.
    #[error("reading the trace: {0}")]
    Io(#[from] io::Error),
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LineError {
    /// No header.
    #[error("the trace is empty; its first line must be a header with `weft_trace` and `base`")]
    Empty,
    /// Not an object with the right fields.
    #[error("{0}")]
    Json(String),
    /// A format of another time.
    #[error("the trace has version {0}; this reader knows {TRACE_VERSION} only")]
    Version(u32),
    /// Too many bytes.
    #[error("is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// A time that is none.
    #[error("`t` is {0}; it must be seconds from the start, 0 to {MAX_ARRIVAL_S}")]
    Time(f64),
    /// Nothing to compute.
    #[error("`in` is 0; a prompt has at least one token")]
    EmptyPrompt,
    /// One name twice in the header.
    #[error("the header names `{0}` twice")]
    Doubled(String),
    /// More names than indices.
    #[error("the trace has too many names")]
    TooManyNames,
}

/// An iterator over the requests of a trace, in the order of its lines.
#[derive(Debug)]
pub struct TraceReader<R> {
    input: R,
    header: TraceHeader,
    adapters: HashMap<String, u32>,
    tenants: HashMap<String, u32>,
    line: Vec<u8>,
    number: u64,
    is_at_end: bool,
}

impl<R: BufRead> TraceReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// If there is none, or it makes no sense.
    pub fn new(input: R) -> Result<Self, TraceError> {
        let mut reader = Self {
            input,
            header: TraceHeader::default(),
            adapters: HashMap::new(),
            tenants: HashMap::new(),
            line: Vec::new(),
            number: 0,
            is_at_end: false,
        };
        if !reader.next_line()? {
            return Err(reader.refuse(LineError::Empty));
        }
        reader.read_header().map_err(|reason| reader.refuse(reason))?;
        Ok(reader)
    }

    /// The header, with the adapters and tenants that lines have named so far.
    #[must_use]
    pub fn header(&self) -> &TraceHeader {
        &self.header
    }

    /// All requests by arrival, and the complete header. Holds the whole trace: 40 bytes a request.
    ///
    /// # Errors
    /// The first bad line's.
    pub fn into_sorted(mut self) -> Result<(TraceHeader, Vec<TraceRequest>), TraceError> {
        let mut requests = self.by_ref().collect::<Result<Vec<_>, _>>()?;
        requests.sort_by(|a, b| a.arrival_s.total_cmp(&b.arrival_s));
        Ok((self.header, requests))
    }

    /// Fills `line` with the next line that is not blank; false at the end.
    fn next_line(&mut self) -> Result<bool, TraceError> {
        loop {
            self.line.clear();
            let mut limited = (&mut self.input).take(MAX_LINE_BYTES);
            if limited.read_until(b'\n', &mut self.line)? == 0 {
                return Ok(false);
            }
            self.number += 1;
            if self.line.len() as u64 == MAX_LINE_BYTES && self.line.last() != Some(&b'\n') {
                return Err(self.refuse(LineError::TooLong));
            }
            if !self.line.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn refuse(&self, reason: LineError) -> TraceError {
        TraceError::Line { number: self.number.max(1), reason }
    }

    fn read_header(&mut self) -> Result<(), LineError> {
        self.header = parse(&self.line)?;
        let TraceHeader { version, base, adapters, tenants } = &self.header;
        if *version != TRACE_VERSION {
            return Err(LineError::Version(*version));
        }
        for (index, adapter) in adapters.iter().enumerate() {
            let index = u32::try_from(index).map_err(|_| LineError::TooManyNames)?;
            let earlier = self.adapters.insert(adapter.name.clone(), index);
            if earlier.is_some() || adapter.name == *base {
                return Err(LineError::Doubled(adapter.name.clone()));
            }
        }
        for (index, tenant) in tenants.iter().enumerate() {
            let index = u32::try_from(index).map_err(|_| LineError::TooManyNames)?;
            if self.tenants.insert(tenant.clone(), index).is_some() {
                return Err(LineError::Doubled(tenant.clone()));
            }
        }
        Ok(())
    }

    fn read_request(&mut self) -> Result<TraceRequest, LineError> {
        let line: TraceLine<'_> = parse(&self.line)?;
        if !(0.0..=MAX_ARRIVAL_S).contains(&line.t) {
            return Err(LineError::Time(line.t));
        }
        if line.prompt_tokens == 0 {
            return Err(LineError::EmptyPrompt);
        }
        let header = &mut self.header;
        let (mut adapter, mut rank) = (None, None);
        if line.model != header.base {
            let index = match self.adapters.get(&*line.model) {
                Some(&index) => index,
                None => {
                    let name = line.model.clone().into_owned();
                    header.adapters.push(TraceAdapter { name, rank: line.rank, bytes: None });
                    intern(&mut self.adapters, &line.model)?
                }
            };
            adapter = Some(index);
            rank = line.rank.or(header.adapters[index as usize].rank);
        }
        let tenant = match self.tenants.get(&*line.tenant) {
            Some(&index) => index,
            None => {
                header.tenants.push(line.tenant.clone().into_owned());
                intern(&mut self.tenants, &line.tenant)?
            }
        };
        Ok(TraceRequest {
            arrival_s: to_microsecond(line.t),
            adapter,
            tenant,
            prompt_tokens: line.prompt_tokens,
            output_tokens: line.output_tokens,
            rank,
        })
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<TraceRequest, TraceError>;

    /// A bad line is an error, and the next call goes on behind it; after a line that is too long
    /// or an error of the input there is nothing more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_at_end {
            return None;
        }
        match self.next_line() {
            Ok(true) => {
                let request = self.read_request();
                Some(request.map_err(|reason| self.refuse(reason)))
            }
            Ok(false) => {
                self.is_at_end = true;
                None
            }
            Err(error) => {
                self.is_at_end = true;
                Some(Err(error))
            }
        }
    }
}

fn parse<'a, T: serde::Deserialize<'a>>(line: &'a [u8]) -> Result<T, LineError> {
    serde_json::from_slice(line).map_err(|error| {
        // serde_json counts lines of its own input, which is always one.
        let text = error.to_string();
        LineError::Json(match text.rsplit_once(" at line ") {
            Some((text, _)) => format!("{text}, at column {}", error.column()),
            None => text,
        })
    })
}

fn intern(names: &mut HashMap<String, u32>, name: &str) -> Result<u32, LineError> {
    let index = u32::try_from(names.len()).map_err(|_| LineError::TooManyNames)?;
    names.insert(name.to_owned(), index);
    Ok(index)
}
