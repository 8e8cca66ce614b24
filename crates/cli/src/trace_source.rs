//! Where requests of a trace come from: a file, or a generator. In: flags. Out: a header and an
//! iterator by arrival. Also `weft bench trace`, which writes what comes.

use crate::args::trace::Generator;
use crate::args::{BenchTraceArgs, TraceArgs};
use crate::device;
use crate::output::forgive_broken_pipe;
use crate::serve::find_model;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;
use weft_bench::synthetic::{adapters, bytes_per_rank, merge};
use weft_bench::{
    Popularity, SLoraLoad, SyntheticTrace, TraceHeader, TraceReader, TraceRequest, TraceWriter,
};
use weft_types::{Dtype, Module};

/// Requests, ready to be replayed.
pub struct TraceSource {
    /// Base, adapters and tenants, all of them.
    pub header: TraceHeader,
    /// By arrival. Synthetic ones are made as they are asked for.
    pub requests: Box<dyn Iterator<Item = TraceRequest>>,
    /// How many they are.
    pub num_requests: u64,
}

/// Opens what the flags name. `base` and `bytes_per_rank` go into the header of a synthetic trace;
/// a recorded one has its own.
///
/// # Errors
/// If the file cannot be read, or the flags contradict each other.
pub fn open(args: &TraceArgs, base: &str, bytes_per_rank: Option<u64>) -> Result<TraceSource> {
    match &args.trace {
        Some(path) => recorded(path),
        None => synthetic(generated(args), args.neighbour, base, bytes_per_rank),
    }
}

/// The requests of a file, by arrival.
///
/// # Errors
/// If it cannot be read.
pub fn recorded(path: &Path) -> Result<TraceSource> {
    let reading = || format!("reading {}", path.display());
    let file = File::open(path).with_context(reading)?;
    let reader = TraceReader::new(BufReader::new(file)).with_context(reading)?;
    let (header, requests) = reader.into_sorted().with_context(reading)?;
    let num_requests = requests.len() as u64;
    Ok(TraceSource { header, requests: Box::new(requests.into_iter()), num_requests })
}

/// The requests of a generator, and of a second tenant that sends `neighbour` times as much.
///
/// # Errors
/// If its numbers make no sense.
pub fn synthetic(
    trace: SyntheticTrace,
    neighbour: Option<f64>,
    base: &str,
    bytes_per_rank: Option<u64>,
) -> Result<TraceSource> {
    let mut tenants = vec![trace];
    if let Some(factor) = neighbour {
        ensure!(factor.is_finite() && factor > 0.0, "the second tenant's factor must be above 0");
        tenants.push(tenants[0].neighbour(factor));
    }
    let requests = tenants.iter().map(SyntheticTrace::requests).collect::<Result<Vec<_>, _>>()?;
    let num_adapters = tenants.iter().map(|tenant| tenant.num_adapters).sum();
    let num_requests = tenants.iter().map(|tenant| tenant.num_requests).sum();
    let names = ["small", "large"].into_iter().take(tenants.len()).map(str::to_owned);
    let header = TraceHeader {
        tenants: names.collect(),
        ..TraceHeader::new(base, adapters(num_adapters, &tenants[0].ranks, bytes_per_rank))
    };
    Ok(TraceSource { header, requests: Box::new(merge(requests)), num_requests })
}

fn generated(args: &TraceArgs) -> SyntheticTrace {
    match args.generator {
        Generator::SLora => {
            let load =
                SLoraLoad { alpha: 0.3, rate: args.rate, cv: args.cv, duration_s: args.duration };
            let trace = SyntheticTrace::s_lora(args.setting, args.num_adapters, load, args.seed);
            SyntheticTrace {
                num_requests: args.num_requests.unwrap_or(trace.num_requests),
                popularity: args.distribution.unwrap_or(trace.popularity),
                ..trace
            }
        }
        Generator::Punica => {
            let popularity = args.distribution.unwrap_or(Popularity::Uniform);
            SyntheticTrace::punica(popularity, args.num_requests.unwrap_or(1000), args.seed)
        }
    }
}

/// `weft bench trace`
///
/// # Errors
/// If the trace cannot be made or written.
pub fn write(args: &BenchTraceArgs) -> Result<()> {
    let (base, each) = match &args.model {
        Some(model) => {
            let source = find_model(Some(model))?;
            let spec = device::read_spec(&source.path)?;
            let each = bytes_per_rank(&spec, &Module::ALL, Dtype::F16);
            (source.default_name, Some(each))
        }
        None => ("base".to_owned(), None),
    };
    let TraceSource { header, requests, .. } = open(&args.trace, &base, each)?;
    let writing = || format!("writing {}", args.out.display());
    if args.out == Path::new("-") {
        return forgive_broken_pipe(write_to(io::stdout().lock(), header, requests));
    }
    let file = File::create(&args.out).with_context(writing)?;
    write_to(file, header, requests).with_context(writing)
}

fn write_to(
    out: impl Write,
    header: TraceHeader,
    requests: impl Iterator<Item = TraceRequest>,
) -> io::Result<()> {
    let mut writer = TraceWriter::new(BufWriter::new(out), header)?;
    for request in requests {
        writer.write(&request)?;
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{BenchCommand, Cli, Command};
    use clap::Parser;

    fn flags(text: &str) -> BenchTraceArgs {
        let words = "weft bench trace".split(' ').chain(text.split_whitespace());
        let Some(Command::Bench(bench)) = Cli::try_parse_from(words).unwrap().command else {
            panic!("not bench")
        };
        let BenchCommand::Trace(args) = *bench else { panic!("not trace") };
        args
    }

    #[test]
    fn a_written_trace_is_read_back_as_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.jsonl");
        let name = path.to_str().unwrap();
        let args = flags(&format!("{name} --neighbour 10 --rate 2 --setting S2 --seed 7"));
        write(&args).unwrap();
        let made = open(&args.trace, "base", None).unwrap();
        let read = open(&flags(&format!("- --trace {name}")).trace, "", None).unwrap();
        assert_eq!(made.header, read.header);
        assert_eq!(made.header.adapters.len(), 400);
        let requests: Vec<_> = read.requests.collect();
        assert_eq!(requests.len(), 120 + 1200);
        assert!(made.requests.eq(requests));
    }

    #[test]
    fn a_trace_that_cannot_be_read_is_an_error_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace.jsonl");
        std::fs::write(&path, "{\"weft_trace\":1,\"base\":\"b\"}\nx\n").unwrap();
        let args = flags(&format!("- --trace {}", path.display()));
        let error = open(&args.trace, "", None).err().unwrap();
        assert!(format!("{error:#}").contains("trace.jsonl: line 2: expected"), "{error:#}");
    }

    #[test]
    fn generators_take_their_numbers_from_the_flags() {
        let source = open(&flags("- --generator punica --num-requests 100").trace, "b", Some(10));
        let source = source.unwrap();
        assert_eq!((source.header.adapters.len(), source.requests.count()), (10, 100));
        assert_eq!(source.header.adapters[0].bytes, Some(160));
        assert!(open(&flags("- --rate 0 --num-requests 5").trace, "b", None).is_err());
    }
}
