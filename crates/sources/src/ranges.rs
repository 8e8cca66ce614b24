//! HTTP's way to send the rest of a file. In: an offset and an answer. Out: where its bytes begin. A
//! server that ignores the question sends all of it, which is fine.

use crate::checksum::Checksum;
use crate::download::Opened;
use crate::error::{Fault, SourceError};
use crate::web::Answer;
use http::header::RANGE;
use http::{HeaderMap, HeaderValue, StatusCode};

/// Asks for what comes after `offset` bytes.
pub(crate) fn ask_from(headers: &mut HeaderMap, offset: u64) {
    if offset > 0
        && let Ok(value) = HeaderValue::try_from(format!("bytes={offset}-"))
    {
        headers.insert(RANGE, value);
    }
}

/// What a good answer holds of a file of `len` bytes.
pub(crate) fn opened(answer: Answer, len: u64, place: &str) -> Result<Opened, Fault> {
    let changed = || Fault::from(SourceError::Changed { place: place.to_owned() });
    let offset = match answer.status {
        StatusCode::OK => 0,
        StatusCode::PARTIAL_CONTENT => {
            let range = answer.last("content-range").and_then(content_range);
            let (offset, total) = range.ok_or_else(|| {
                SourceError::unfit(place, "sends a part of a file without saying which")
            })?;
            if total.is_some_and(|total| total != len) {
                return Err(changed());
            }
            offset
        }
        StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::PRECONDITION_FAILED => {
            return Err(changed());
        }
        status => {
            let reason = format!("answers with status {status}");
            return Err(SourceError::unfit(place, reason).into());
        }
    };
    let checksum = Checksum::of_headers(&answer.headers, offset);
    Ok(Opened { offset, checksum, chunks: answer.chunks() })
}

/// `bytes FIRST-LAST/TOTAL`: the first byte, and the total if it is said.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    Some((first, if total == "*" { None } else { Some(total.trim().parse().ok()?) }))
}

#[cfg(test)]
mod tests {
    use super::content_range;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for odd in
            ["", "bytes", "bytes 5", "bytes x-9/10", "bytes 5-9/x", "items 5-9/10", "bytes */10"]
        {
            assert_eq!(content_range(odd), None, "{odd}");
        }
    }
}
