//! The program as users start it: what it does to the machine, which tests inside it cannot see.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use weft::known_models::DEMO_MODEL;

/// A server whose log nobody reads; killed at the end.
struct Server {
    process: Child,
    addr: String,
}

impl Server {
    /// `weft serve` with these arguments, once it is ready.
    fn start(args: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["serve", "--port", "0"])
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut server = Self { process, addr: String::new() };
        for line in lines {
            if let Some((_, rest)) = line.unwrap().split_once("http://") {
                server.addr = rest.split_whitespace().next().unwrap().to_owned();
                return server;
            }
        }
        panic!("the server ended without an announcement");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_does_not_stop_the_server() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/models/tiny-llama");
    let server = Server::start(&[model, "--memory", "16MiB"]);
    let mut stream = TcpStream::connect(&server.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let request = format!("GET /v1/models HTTP/1.1\r\nhost: {}\r\n\r\n", server.addr);
    // A pipe holds some hundred lines.
    for index in 0..3000 {
        stream.write_all(request.as_bytes()).unwrap();
        let mut reader = BufReader::new(&stream);
        let (mut line, mut len) = (String::new(), 0);
        reader.read_line(&mut line).unwrap_or_else(|error| panic!("request {index}: {error}"));
        assert!(line.contains(" 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.strip_prefix("content-length: ") {
                len = value.trim().parse().unwrap();
            }
        }
        reader.read_exact(&mut vec![0; len]).unwrap();
    }
}

/// Bytes that the system counts for a server under `name`.
#[cfg(target_os = "linux")]
fn memory(server: &Server, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = status.lines().find(|line| line.split(':').next() == Some(name)).unwrap();
    1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn the_demo_base_takes_less_than_twice_its_file_in_memory_and_less_when_it_was_packed_before() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().to_str().unwrap();
    let start = || Server::start(&[DEMO_MODEL.name, "--memory", "64MiB", "--weight-cache", cache]);
    let first = start();
    let (resident, peak) = (memory(&first, "VmRSS"), memory(&first, "VmHWM"));
    let file = DEMO_MODEL.num_bytes;
    println!("{resident} bytes resident, {peak} at most, {file} in the file");
    assert!(resident < 2 * file, "{resident} bytes resident, {file} in the file");

    let is_kept = || {
        let mut files = std::fs::read_dir(dir.path()).unwrap();
        files.any(|entry| entry.unwrap().path().extension().is_some_and(|end| end == "weft"))
    };
    let is_kept = (0..1200).any(|_| {
        std::thread::sleep(Duration::from_millis(25));
        is_kept()
    });
    assert!(is_kept, "the first start keeps what it packed");
    drop(first);
    let second = start();
    let (own, again) = (memory(&second, "RssAnon"), memory(&second, "VmHWM"));
    println!("{own} bytes of its own, {again} at most, when the weights are mapped");
    assert!(own < file && again < peak, "{own} bytes of its own, {again} at most");
}

/// Processor time of all threads of a process, in the kernel and outside.
#[cfg(target_os = "linux")]
fn cpu_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // After the name, which ends with a parenthesis: fields 14 and 15, in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[cfg(target_os = "linux")]
#[test]
fn a_server_of_eight_threads_takes_no_processor_time_between_requests() {
    let server = Server::start(&[TINY, "--memory", "16MiB", "--threads", "8"]);
    for _ in 0..2 {
        let body = r#"{"model": "tiny-llama", "prompt": [1, 2, 3], "max_tokens": 20}"#;
        assert!(complete(&server, body).starts_with("HTTP/1.1 200"));
        std::thread::sleep(Duration::from_millis(500));
        let before = cpu_seconds(server.process.id());
        std::thread::sleep(Duration::from_secs(1));
        let used = cpu_seconds(server.process.id()) - before;
        assert!(used < 0.1, "{used} s of processor time in a second without requests");
    }
}

/// The whole answer to a completion.
fn complete(server: &Server, body: &str) -> String {
    let mut stream = TcpStream::connect(&server.addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (addr, len) = (&server.addr, body.len());
    let head = format!("POST /v1/completions HTTP/1.1\r\nhost: {addr}\r\ncontent-length: {len}");
    let head = head + "\r\nconnection: close\r\ncontent-type: application/json\r\n\r\n";
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/models/tiny-llama");

#[test]
fn what_a_server_records_a_simulation_replays() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("trace.jsonl");
    let trace = trace.to_str().unwrap();
    let server = Server::start(&[TINY, "--memory", "16MiB", "--record-trace", trace]);
    let body = r#"{"model": "tiny-llama", "prompt": [1, 2, 3], "max_tokens": 2, "user": "acme"}"#;
    let answer = complete(&server, body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Lines reach the file within a second, not only at the end.
    let num_lines = || std::fs::read_to_string(trace).unwrap().lines().count();
    for _ in 0..400 {
        if num_lines() == 2 {
            break;
        }
        std::thread::sleep(Duration::from_millis(25));
    }
    drop(server);

    let args = ["bench", "simulate", "--workload", "trace", "--json", "--trace", trace];
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).args(args).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["num_finished"], 1, "{report}");
    assert!(report.to_string().contains("acme"), "{report}");

    // The file is not overwritten.
    let again = ["serve", TINY, "--port", "0", "--memory", "16MiB", "--record-trace", trace];
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).args(again).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--record-trace"), "{said}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let args = ["bench", "simulate", "--requests", "20", "--adapters", "2", "--json"];
    let mut process = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(process.stdout.take());
    let output = process.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("panicked"), "{said}");
}

#[test]
fn a_calibration_is_what_a_simulation_reads() {
    let dir = tempfile::tempdir().unwrap();
    let costs = dir.path().join("costs.json");
    let costs = costs.to_str().unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_weft")).arg("bench").args(args).output();
        let output = output.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let flags = ["--memory", "64MiB", "--repeats", "1", "--json", costs];
    let table = run(&[&["calibrate", TINY], flags.as_slice()].concat());
    assert!(table.contains("32 adapters of rank 64") && table.contains("R²"), "{table}");
    run(&["simulate", "--requests", "20", "--costs", costs]);
}
