//! Server-sent events from a byte stream, as far as OpenAI-compatible servers use them. In: bytes,
//! cut anywhere. Out: the `data` of each event.

/// Collects bytes and yields complete events.
#[derive(Debug, Default)]
pub(crate) struct EventReader {
    line: Vec<u8>,
    data: String,
}

impl EventReader {
    /// Adds bytes; calls `on_event` with the data of each event that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8], mut on_event: impl FnMut(&str)) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line);
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                if !self.data.is_empty() {
                    on_event(&self.data);
                    self.data.clear();
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                if !self.data.is_empty() {
                    self.data.push('\n');
                }
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_the_same_wherever_the_bytes_are_cut() {
        let stream = ": ping\n\ndata: {\"a\":\"é\"}\n\nevent: x\r\ndata:one\r\ndata: two\r\n\r\ndata: [DONE]\n\n";
        for size in 1..stream.len() {
            let (mut reader, mut events) = (EventReader::default(), Vec::new());
            for piece in stream.as_bytes().chunks(size) {
                reader.push(piece, |data| events.push(data.to_owned()));
            }
            assert_eq!(events, ["{\"a\":\"é\"}", "one\ntwo", "[DONE]"], "pieces of {size}");
        }
    }
}
