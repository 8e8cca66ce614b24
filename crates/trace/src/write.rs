//! Writes traces. In: a header, then requests in any order. Out: lines.

use crate::{TraceHeader, TraceLine, TraceRequest, to_microsecond};
use std::borrow::Cow;
use std::io::{self, Write};

/// A request names an adapter or a tenant that the header does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {index} of a request is not in the trace's header, which has {known}")]
pub struct UnknownIndex {
    /// `adapter` or `tenant`.
    pub kind: &'static str,
    /// What was asked for.
    pub index: u32,
    /// How many the header has.
    pub known: usize,
}

/// Writes one line a request. Buffers nothing: wrap files in a [`std::io::BufWriter`].
#[derive(Debug)]
pub struct TraceWriter<W> {
    out: W,
    header: TraceHeader,
    line: Vec<u8>,
}

impl<W: Write> TraceWriter<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// If `out` does.
    pub fn new(out: W, header: TraceHeader) -> io::Result<Self> {
        let mut writer = Self { out, header, line: Vec::new() };
        serde_json::to_writer(&mut writer.line, &writer.header)?;
        writer.end_line()?;
        Ok(writer)
    }

    /// Writes a request by its names. The whole line goes out in one `write_all`.
    ///
    /// # Errors
    /// If the underlying writer fails.
    pub fn write_line(&mut self, line: &TraceLine<'_>) -> io::Result<()> {
        // JSON has no infinities; a time that is none is the start's.
        let t = if line.t.is_finite() { to_microsecond(line.t.max(0.0)) } else { 0.0 };
        serde_json::to_writer(&mut self.line, &TraceLine { t, ..line.clone() })?;
        self.end_line()
    }

    /// Writes a request by the header's indices. A tenant beyond the header's, if it has none, is
    /// called by its number.
    ///
    /// # Errors
    /// If the underlying writer fails, or with [`UnknownIndex`].
    pub fn write(&mut self, request: &TraceRequest) -> io::Result<()> {
        let unknown = |kind, index, known| io::Error::other(UnknownIndex { kind, index, known });
        let TraceHeader { base, adapters, tenants, .. } = &self.header;
        let (model, known_rank) = match request.adapter {
            None => (base.as_str(), None),
            Some(index) => {
                let adapter = adapters
                    .get(index as usize)
                    .ok_or_else(|| unknown("adapter", index, adapters.len()))?;
                (adapter.name.as_str(), adapter.rank)
            }
        };
        let tenant = match tenants.get(request.tenant as usize) {
            Some(name) => Cow::Borrowed(name.as_str()),
            None if tenants.is_empty() => Cow::Owned(format!("tenant-{}", request.tenant)),
            None => return Err(unknown("tenant", request.tenant, tenants.len())),
        };
        let line = TraceLine {
            t: to_microsecond(request.arrival_s),
            model: Cow::Borrowed(model),
            tenant,
            prompt_tokens: request.prompt_tokens,
            output_tokens: request.output_tokens,
            rank: request.rank.filter(|_| known_rank != request.rank),
        };
        serde_json::to_writer(&mut self.line, &line)?;
        self.end_line()
    }

    /// Pushes out what the underlying writer holds.
    ///
    /// # Errors
    /// If it cannot.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// The underlying writer.
    pub fn into_inner(self) -> W {
        self.out
    }

    fn end_line(&mut self) -> io::Result<()> {
        self.line.push(b'\n');
        let written = self.out.write_all(&self.line);
        self.line.clear();
        written
    }
}
