//! In: sequences as they end. Out: lines of a trace, for `weft bench simulate`.
//!
//! A thread of its own writes. Whoever ends a sequence only puts a line into a bounded channel: a
//! disk that is slow or full costs lines, never requests.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use weft_trace::{TraceHeader, TraceLine, TraceWriter};

/// Lines that may wait for the disk.
const MAX_WAITING: usize = 8192;
/// Bytes that are written at once.
const BUFFER_BYTES: usize = 64 << 10;
/// A line is in the file at most this long after its request ended.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// Writes a line of a trace for each sequence that ends. Cheap to clone; the file ends with the
/// last clone.
///
/// Time counts from when this was made. A sequence's time is when the engine took it: its adapter
/// was in host memory then. Several prompts or choices of a request are as many lines; requests that
/// were refused have none.
#[derive(Clone, Debug)]
pub struct TraceRecorder {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    sender: SyncSender<Message>,
    started: Instant,
    losses: Arc<Losses>,
}

enum Message {
    Line(Ended),
    /// Answered once all lines before it are in the file.
    Flush(oneshot::Sender<()>),
}

/// A sequence that ended.
struct Ended {
    arrival_s: f64,
    /// `None` is the base.
    adapter: Option<Arc<str>>,
    rank: u32,
    tenant: Arc<str>,
    prompt_tokens: u32,
    output_tokens: u32,
}

/// Lines that are in no file.
#[derive(Debug, Default)]
struct Losses {
    num_lines: AtomicU64,
}

impl Losses {
    fn add(&self, num_lines: u64, why: &dyn std::fmt::Display) {
        if num_lines > 0 && self.num_lines.fetch_add(num_lines, Ordering::Relaxed) == 0 {
            tracing::warn!(
                "the trace loses lines: {why}; weft:trace_lines_dropped_total counts them"
            );
        }
    }
}

impl TraceRecorder {
    /// Records into a new file.
    ///
    /// # Errors
    /// If it cannot be written, or has content already: an earlier recording is worth keeping.
    pub fn create(path: &Path, header: TraceHeader) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        if file.metadata()?.len() > 0 {
            let why = "the file has content already; move it away or name another one";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, why));
        }
        Self::start::<File>(file, header)
    }

    /// Records into `out`, beginning with the header.
    ///
    /// # Errors
    /// If the header cannot be written or no thread can be started.
    pub fn start<W: Write + Send + 'static>(out: W, header: TraceHeader) -> io::Result<Self> {
        Self::with_capacity(out, header, MAX_WAITING)
    }

    fn with_capacity<W: Write + Send + 'static>(
        out: W,
        header: TraceHeader,
        capacity: usize,
    ) -> io::Result<Self> {
        let losses = Arc::new(Losses::default());
        let ranks = header.adapters.iter();
        let ranks = ranks.filter_map(|adapter| Some((adapter.name.clone(), adapter.rank?)));
        let (ranks, base) = (ranks.collect(), header.base.clone());
        let mut writer = TraceWriter::new(BufWriter::with_capacity(BUFFER_BYTES, out), header)?;
        writer.flush()?;
        let file = TraceFile { writer, base, ranks, losses: Arc::clone(&losses), num_buffered: 0 };
        let (sender, receiver) = sync_channel(capacity);
        thread::Builder::new().name("weft-trace".into()).spawn(move || file.run(&receiver))?;
        Ok(Self { inner: Arc::new(Inner { sender, started: Instant::now(), losses }) })
    }

    /// Lines that were lost.
    pub(crate) fn num_dropped(&self) -> u64 {
        self.inner.losses.num_lines.load(Ordering::Relaxed)
    }

    /// Begins a sequence that the engine has just taken.
    pub(crate) fn begin(
        &self,
        adapter: Option<(Arc<str>, usize)>,
        tenant: Arc<str>,
        prompt_tokens: usize,
    ) -> Recording {
        let (adapter, rank) = adapter.unzip();
        let ended = Ended {
            arrival_s: self.inner.started.elapsed().as_secs_f64(),
            adapter,
            rank: saturating(rank.unwrap_or(0)),
            tenant,
            prompt_tokens: saturating(prompt_tokens),
            output_tokens: 0,
        };
        Recording { recorder: self.clone(), ended: Some(ended) }
    }

    /// Waits until all lines so far are in the file, but not longer than `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let (done, is_done) = oneshot::channel();
        let send = async {
            let mut message = Message::Flush(done);
            while let Err(TrySendError::Full(back)) = self.inner.sender.try_send(message) {
                message = back;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let _ = is_done.await;
        };
        if tokio::time::timeout(limit, send).await.is_err() {
            tracing::warn!("the last lines of the trace may be missing: the disk is too slow");
        }
    }

    fn send(&self, ended: Ended) {
        match self.inner.sender.try_send(Message::Line(ended)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => self.inner.losses.add(1, &"the disk is too slow"),
            Err(TrySendError::Disconnected(_)) => self.inner.losses.add(1, &"its thread ended"),
        }
    }
}

fn saturating(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A sequence that runs. Dropping it, for whatever reason, writes its line.
pub(crate) struct Recording {
    recorder: TraceRecorder,
    /// `None` never, but in `drop`.
    ended: Option<Ended>,
}

impl Recording {
    /// A token came.
    pub(crate) fn token(&mut self) {
        if let Some(ended) = &mut self.ended {
            ended.output_tokens = ended.output_tokens.saturating_add(1);
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            self.recorder.send(ended);
        }
    }
}

/// What the thread has.
struct TraceFile<W: Write> {
    writer: TraceWriter<BufWriter<W>>,
    base: String,
    /// Of the header's adapters.
    ranks: HashMap<String, u32>,
    losses: Arc<Losses>,
    /// Lines that may not be in the file yet.
    num_buffered: u64,
}

impl<W: Write> TraceFile<W> {
    /// Until the last sender is gone.
    fn run(mut self, messages: &Receiver<Message>) {
        let mut flush_at = Instant::now() + FLUSH_EVERY;
        loop {
            match messages.recv_timeout(flush_at.saturating_duration_since(Instant::now())) {
                Ok(Message::Line(ended)) => self.write(&ended),
                Ok(Message::Flush(done)) => {
                    self.flush();
                    let _ = done.send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if Instant::now() >= flush_at {
                self.flush();
                flush_at = Instant::now() + FLUSH_EVERY;
            }
        }
        if let Err(error) = self.writer.flush() {
            self.losses.add(self.num_buffered, &error);
        }
    }

    /// A line that finds no room in the buffer because the disk is full is lost as a whole: the
    /// buffer stays as it is and is tried again.
    fn write(&mut self, ended: &Ended) {
        let adapter = ended.adapter.as_deref();
        let known = adapter.and_then(|name| self.ranks.get(name).copied());
        let line = TraceLine {
            t: ended.arrival_s,
            model: Cow::Borrowed(adapter.unwrap_or(&self.base)),
            tenant: tenant_name(&ended.tenant),
            prompt_tokens: ended.prompt_tokens,
            output_tokens: ended.output_tokens,
            rank: adapter.is_some().then_some(ended.rank).filter(|&rank| known != Some(rank)),
        };
        match self.writer.write_line(&line) {
            Ok(()) => self.num_buffered += 1,
            Err(error) => self.losses.add(1, &error),
        }
    }

    fn flush(&mut self) {
        // A failure is told of when it costs a line.
        if self.writer.flush().is_ok() {
            self.num_buffered = 0;
        }
    }
}

/// The name of a `user`, or a number in place of an API key: always the same, and it tells nothing
/// about a key that cannot be guessed.
fn tenant_name(tenant: &str) -> Cow<'_, str> {
    match tenant.split_once(':') {
        Some(("user", name)) => Cow::Borrowed(name),
        Some(("key", key)) => {
            let hash = blake3::derive_key("weft 2026 tenant of a trace", key.as_bytes());
            let digits: String = hash[..6].iter().map(|byte| format!("{byte:02x}")).collect();
            Cow::Owned(format!("key-{digits}"))
        }
        _ => Cow::Borrowed(""),
    }
}

#[cfg(test)]
mod tests;
