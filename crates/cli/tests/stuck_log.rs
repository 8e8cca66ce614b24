//! A log that nobody reads must not stop the server: the program as users start it, its standard
//! error a pipe that is never emptied.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_log_that_nobody_reads_does_not_stop_the_server() {
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/models/tiny-llama");
    let child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["serve", model, "--port", "0", "--memory", "16MiB"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut server = Killed(child.unwrap());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let addr = loop {
        let line = lines.next().expect("an announcement").unwrap();
        if let Some((_, rest)) = line.split_once("http://") {
            break rest.split_whitespace().next().unwrap().to_owned();
        }
    };
    let mut stream = TcpStream::connect(&addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // A pipe holds some hundred lines.
    for index in 0..3000 {
        write!(stream, "GET /v1/models HTTP/1.1\r\nhost: {addr}\r\n\r\n").unwrap();
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
