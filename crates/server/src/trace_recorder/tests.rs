//! Disks that are full, slow or fine.

use super::*;
use std::sync::Mutex;
use weft_trace::{TraceAdapter, TraceReader};

/// A disk with some room, that can be given more.
#[derive(Clone, Default)]
struct Disk {
    bytes: Arc<Mutex<Vec<u8>>>,
    room: Arc<Mutex<usize>>,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = *self.room.lock().unwrap();
        let mut kept = self.bytes.lock().unwrap();
        let len = bytes.len().min(room.saturating_sub(kept.len()));
        if len == 0 {
            return Err(io::Error::other("no space left on device"));
        }
        kept.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn disk(room: usize) -> Disk {
    Disk { room: Arc::new(Mutex::new(room)), ..Disk::default() }
}

fn header() -> TraceHeader {
    let sql = TraceAdapter { name: "sql".into(), rank: Some(8), bytes: Some(1000) };
    TraceHeader::new("base", vec![sql])
}

fn record(recorder: &TraceRecorder, tenant: &str) {
    let mut recording = recorder.begin(Some(("sql".into(), 8)), tenant.into(), 3);
    recording.token();
    recording.token();
}

const LIMIT: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_full_disk_costs_whole_lines_and_nothing_else() {
    let disk = disk(200_000);
    let recorder = TraceRecorder::start(disk.clone(), header()).unwrap();
    for _ in 0..7000 {
        record(&recorder, "user:acme");
    }
    recorder.flush(LIMIT).await;
    let num_dropped = recorder.num_dropped();
    assert!(num_dropped > 0);
    *disk.room.lock().unwrap() = usize::MAX;
    record(&recorder, "user:acme");
    recorder.flush(LIMIT).await;

    let bytes = disk.bytes.lock().unwrap().clone();
    let requests = TraceReader::new(bytes.as_slice()).unwrap().map(Result::unwrap);
    assert_eq!(requests.count() as u64, 7001 - num_dropped);
    assert_eq!(recorder.num_dropped(), num_dropped);
}

#[tokio::test]
async fn a_disk_that_stands_still_keeps_nobody_waiting() {
    let disk = disk(usize::MAX);
    let recorder = TraceRecorder::with_capacity(disk.clone(), header(), 4).unwrap();
    {
        let _standing = disk.bytes.lock().unwrap();
        // The buffer's worth, the channel's, and then there is no room.
        for _ in 0..10_000 {
            record(&recorder, "");
        }
    }
    assert!(recorder.num_dropped() > 0);
    recorder.flush(LIMIT).await;
    let bytes = disk.bytes.lock().unwrap().clone();
    let num_read = TraceReader::new(bytes.as_slice()).unwrap().count() as u64;
    assert_eq!(num_read + recorder.num_dropped(), 10_000);
}

#[test]
fn an_earlier_recording_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.jsonl");
    TraceRecorder::create(&path, header()).unwrap();
    let error = TraceRecorder::create(&path, header()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
}

#[test]
fn keys_stay_out_of_the_file() {
    let name = tenant_name("key:sk-secret");
    assert_eq!(name, tenant_name("key:sk-secret"));
    assert_ne!(name, tenant_name("key:sk-other"));
    assert!(name.starts_with("key-") && !name.contains("secret"), "{name}");
    assert_eq!((tenant_name("user:a:b"), tenant_name("")), ("a:b".into(), "".into()));
}
