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

#[cfg(target_os = "linux")]
#[test]
fn the_demo_base_takes_less_than_twice_its_file_in_memory() {
    let server = Server::start(&[DEMO_MODEL.name, "--memory", "64MiB"]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let resident = 1024 * line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
    let file = DEMO_MODEL.num_bytes;
    println!("{resident} bytes resident, {file} in the file");
    assert!(resident < 2 * file, "{resident} bytes resident, {file} in the file");
}
