//! What is written is read back, and nothing that can be read is a panic.

use crate::*;
use proptest::prelude::*;

fn header() -> TraceHeader {
    let adapter = |name: &str, rank| TraceAdapter { name: name.into(), rank, bytes: Some(4096) };
    let adapters = vec![adapter("sql", Some(8)), adapter("json \"x\"\n", None)];
    TraceHeader {
        tenants: vec!["acme".into(), String::new()],
        ..TraceHeader::new("base", adapters)
    }
}

fn read(text: &str) -> Result<(TraceHeader, Vec<TraceRequest>), TraceError> {
    TraceReader::new(text.as_bytes())?.into_sorted()
}

fn refused(lines: &str) -> String {
    let text = format!("{{\"weft_trace\":1,\"base\":\"b\"}}\n{lines}");
    read(&text).unwrap_err().to_string()
}

fn request() -> impl Strategy<Value = TraceRequest> {
    (0_u64..1 << 49, 0_u32..3, 0_u32..2, 1_u32.., any::<u32>()).prop_map(
        |(micros, adapter, tenant, prompt_tokens, output_tokens)| TraceRequest {
            arrival_s: micros as f64 / 1e6,
            adapter: adapter.checked_sub(1),
            tenant,
            prompt_tokens,
            output_tokens,
            rank: (adapter == 1).then_some(8),
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(requests in proptest::collection::vec(request(), 0..20)) {
        let mut writer = TraceWriter::new(Vec::new(), header()).unwrap();
        for request in &requests {
            writer.write(request).unwrap();
        }
        let bytes = writer.into_inner();
        let reader = TraceReader::new(bytes.as_slice()).unwrap();
        prop_assert_eq!(reader.header(), &header());
        let seen: Vec<_> = reader.map(Result::unwrap).collect();
        prop_assert_eq!(seen, requests);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok(reader) = TraceReader::new(bytes.as_slice()) {
            let _ = reader.count();
        }
    }

    /// Bytes of a good trace with some of them replaced: most get past the first checks.
    #[test]
    fn no_damaged_trace_panics_and_every_line_is_accounted_for(
        damage in proptest::collection::vec((0_usize..400, any::<u8>()), 0..6),
        cut in 0_usize..400,
    ) {
        let mut bytes = GOOD.as_bytes().to_vec();
        let len = bytes.len();
        for (at, byte) in damage {
            bytes[at % len] = byte;
        }
        bytes.truncate(len - cut % len);
        if let Ok(mut reader) = TraceReader::new(bytes.as_slice()) {
            let seen: Vec<_> = reader.by_ref().collect();
            prop_assert!(seen.len() <= bytes.iter().filter(|&&byte| byte == b'\n').count());
            let header = reader.header();
            for request in seen.into_iter().flatten() {
                prop_assert!(request.adapter.is_none_or(|i| (i as usize) < header.adapters.len()));
                prop_assert!((request.tenant as usize) < header.tenants.len());
                prop_assert!(request.arrival_s >= 0.0 && request.prompt_tokens > 0);
            }
        }
    }
}

const GOOD: &str = r#"{"weft_trace":1,"base":"llama","adapters":[{"name":"sql","rank":8,"bytes":4884480}]}
{"t":1.5,"model":"sql","tenant":"acme","in":128,"out":64}
{"t":0.25,"model":"new","in":16,"out":0,"rank":4}
{"t":0.5,"model":"llama","tenant":"acme","in":16,"out":4}
"#;

#[test]
fn lines_are_sorted_by_arrival_and_new_names_get_indices() {
    let (header, requests) = read(GOOD).unwrap();
    let adapters: Vec<_> = requests.iter().map(|request| request.adapter).collect();
    assert_eq!(adapters, [Some(1), None, Some(0)]);
    assert_eq!(requests.iter().map(|r| r.rank).collect::<Vec<_>>(), [Some(4), None, Some(8)]);
    assert_eq!(requests.iter().map(|r| r.tenant).collect::<Vec<_>>(), [1, 0, 0]);
    assert_eq!(header.tenants, ["acme", ""]);
    assert_eq!((header.adapters[1].name.as_str(), header.adapters[1].rank), ("new", Some(4)));
}

#[test]
fn a_line_is_what_the_documentation_shows() {
    let mut writer = TraceWriter::new(Vec::new(), TraceHeader::new("llama", Vec::new())).unwrap();
    let line = TraceLine {
        t: 0.250_000_04,
        model: "sql".into(),
        tenant: "".into(),
        prompt_tokens: 16,
        output_tokens: 4,
        rank: None,
    };
    writer.write_line(&line).unwrap();
    let text = String::from_utf8(writer.into_inner()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], r#"{"weft_trace":1,"base":"llama","adapters":[]}"#);
    assert_eq!(lines[1], r#"{"t":0.25,"model":"sql","in":16,"out":4}"#);
}

#[test]
fn a_bad_line_is_an_error_with_its_number_and_the_next_one_is_read() {
    let good = r#"{"t":1,"model":"b","in":1,"out":1}"#;
    let text = format!("{{\"weft_trace\":1,\"base\":\"b\"}}\n{good}\n\nnonsense\n{good}");
    let mut reader = TraceReader::new(text.as_bytes()).unwrap();
    assert!(reader.next().unwrap().is_ok());
    let error = reader.next().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("line 4: expected"), "{error}");
    assert!(reader.next().unwrap().is_ok());
    assert!(reader.next().is_none() && reader.next().is_none());
}

#[test]
fn nonsense_is_refused_with_a_sentence() {
    let line = |t: &str, prompt: &str, more: &str| {
        format!(r#"{{"t":{t},"model":"b","in":{prompt},"out":1{more}}}"#)
    };
    assert!(refused(&line("-1", "1", "")).contains("`t` is -1"));
    assert!(refused(&line("1e300", "1", "")).contains("`t` is 1"));
    assert!(refused(&line("1e999", "1", "")).contains("line 2"));
    assert!(refused(&line("0", "0", "")).contains("`in` is 0"));
    assert!(refused(&line("0", "5000000000", "")).contains("5000000000"));
    assert!(refused(&line("0", "1", ",\"x\":1")).contains("unknown field `x`"));
    assert!(read("").unwrap_err().to_string().contains("is empty"));
    assert!(
        read("{\"weft_trace\":2,\"base\":\"b\"}").unwrap_err().to_string().contains("version 2")
    );
    let twice = r#"{"weft_trace":1,"base":"b","adapters":[{"name":"a"},{"name":"a"}]}"#;
    assert!(read(twice).unwrap_err().to_string().contains("`a` twice"));
}

#[test]
fn a_line_without_an_end_is_given_up_and_not_held() {
    use std::io::Read;
    let head = "{\"weft_trace\":1,\"base\":\"b\"}\n".as_bytes();
    let endless = std::io::BufReader::new(head.chain(std::io::repeat(b'x')));
    let mut reader = TraceReader::new(endless).unwrap();
    assert!(reader.next().unwrap().unwrap_err().to_string().contains("longer than"));
    assert!(reader.next().is_none());
}

#[test]
fn a_request_that_the_header_does_not_know_is_not_written() {
    let mut writer = TraceWriter::new(Vec::new(), header()).unwrap();
    let request = TraceRequest {
        arrival_s: 0.0,
        adapter: Some(9),
        tenant: 0,
        prompt_tokens: 1,
        output_tokens: 1,
        rank: None,
    };
    let error = writer.write(&request).unwrap_err().to_string();
    assert!(error.contains("adapter 9") && error.contains("has 2"), "{error}");
}
