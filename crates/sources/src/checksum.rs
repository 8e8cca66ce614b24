//! What a file's bytes should be. In: what servers say in headers and entity tags. Out: whether a file
//! is that. A text that is no such checksum is none, not an error: servers may use any tag.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// A digest, lower-case hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Sha256(String),
    /// Git's name of a blob: SHA-1 over its length and its bytes.
    GitBlob(String),
    Md5(String),
}

/// What was found instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) kind: &'static str,
    pub(crate) found: String,
    pub(crate) expected: String,
}

impl Checksum {
    /// The hub's entity tags: SHA-256 of large files, git's names of the others.
    pub(crate) fn of_hub_tag(tag: &str) -> Option<Self> {
        match tag.len() {
            64 => hex(tag).map(Self::Sha256),
            40 => hex(tag).map(Self::GitBlob),
            _ => None,
        }
    }

    /// S3's entity tags are MD5s, unless the object came in parts or is encrypted with a key of its own.
    pub(crate) fn of_plain_md5(tag: &str) -> Option<Self> {
        (tag.len() == 32).then(|| hex(tag))?.map(Self::Md5)
    }

    /// Of the whole file, from headers of common servers and stores with the file from `offset` on.
    pub(crate) fn of_headers(headers: &HeaderMap, offset: u64) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        // This one may be of the part that is sent.
        let amazon = text("x-amz-checksum-sha256").filter(|_| offset == 0);
        let sha256 = amazon.and_then(|text| decode(text, 32));
        let sha256 = sha256.or_else(|| {
            let field = text("repr-digest")?;
            let value = field.split(',').find_map(|one| one.trim().strip_prefix("sha-256=:"))?;
            decode(value.strip_suffix(':')?, 32)
        });
        let sha256 = sha256.or_else(|| hex(text("x-checksum-sha256").filter(|t| t.len() == 64)?));
        let md5 = || {
            let google = || {
                let mut all = headers.get_all("x-goog-hash").iter();
                all.find_map(|one| {
                    one.to_str().ok()?.split(',').find_map(|one| one.trim().strip_prefix("md5="))
                })
            };
            decode(text("x-ms-blob-content-md5").or_else(google)?, 16)
        };
        sha256.map(Self::Sha256).or_else(|| md5().map(Self::Md5))
    }

    /// Whether the file's bytes are these. Blocks.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn verify(&self, path: &Path) -> io::Result<Result<(), Mismatch>> {
        let file = File::open(path)?;
        let (kind, expected, found) = match self {
            Self::Sha256(expected) => ("SHA-256", expected, digest::<Sha256>(file, b"")?),
            Self::GitBlob(expected) => {
                let header = format!("blob {}\0", file.metadata()?.len());
                ("git blob SHA-1", expected, digest::<Sha1>(file, header.as_bytes())?)
            }
            Self::Md5(expected) => ("MD5", expected, digest::<Md5>(file, b"")?),
        };
        let mismatch = || Mismatch { kind, found: found.clone(), expected: expected.clone() };
        Ok(if found == *expected { Ok(()) } else { Err(mismatch()) })
    }
}

fn hex(text: &str) -> Option<String> {
    text.bytes().all(|byte| byte.is_ascii_hexdigit()).then(|| text.to_ascii_lowercase())
}

fn decode(base64: &str, num_bytes: usize) -> Option<String> {
    let bytes = STANDARD.decode(base64.trim()).ok().filter(|bytes| bytes.len() == num_bytes)?;
    Some(show(&bytes))
}

fn show(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn digest<D: Digest>(mut file: File, prefix: &[u8]) -> io::Result<String> {
    let mut hasher = D::new();
    hasher.update(prefix);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(show(&hasher.finalize())),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn file() -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"abc").unwrap();
        file
    }

    #[test]
    fn each_kind_knows_its_file_and_says_what_it_found_instead() {
        let file = file();
        let blob = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
        for sum in [
            Checksum::of_hub_tag(&SHA256.to_uppercase()).unwrap(),
            Checksum::of_hub_tag(blob).unwrap(),
            Checksum::of_plain_md5("900150983cd24fb0d6963f7d28e17f72").unwrap(),
        ] {
            assert_eq!(sum.verify(file.path()).unwrap(), Ok(()), "{sum:?}");
        }
        let wrong = Checksum::Md5("0".repeat(32)).verify(file.path()).unwrap().unwrap_err();
        assert_eq!((wrong.kind, wrong.found.len()), ("MD5", 32));
    }

    #[test]
    fn headers_of_common_servers_are_understood_and_odd_ones_ignored() {
        let of = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            Checksum::of_headers(&headers, 0)
        };
        let base64 = "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=";
        let sha256 = Some(Checksum::Sha256(SHA256.into()));
        assert_eq!(of("x-amz-checksum-sha256", base64), sha256);
        assert_eq!(of("repr-digest", &format!("md5=:eA==:, sha-256=:{base64}:")), sha256);
        assert_eq!(of("x-checksum-sha256", SHA256), sha256);
        let md5 = Some(Checksum::Md5("900150983cd24fb0d6963f7d28e17f72".into()));
        assert_eq!(of("x-goog-hash", "crc32c=AAAAAA==,md5=kAFQmDzST7DWlj99KOF/cg=="), md5);
        assert_eq!(of("x-ms-blob-content-md5", "kAFQmDzST7DWlj99KOF/cg=="), md5);
        for (name, value) in [
            ("x-amz-checksum-sha256", "eA=="),
            ("x-checksum-sha256", "xyz"),
            ("repr-digest", "sha-256=x"),
            ("etag", SHA256),
        ] {
            assert_eq!(of(name, value), None, "{name}");
        }
        assert_eq!(Checksum::of_plain_md5("900150983cd24fb0d6963f7d28e17f72-3"), None);
        assert_eq!(Checksum::of_hub_tag("W/abc"), None);
    }
}
