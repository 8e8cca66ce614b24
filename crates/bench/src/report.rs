//! What a run amounts to: rates and percentiles. In: records. Out: a [`Report`], which serializes
//! to JSON and prints as a table. Pure.

use crate::drive::{RequestRecord, Run};
use crate::workload::WorkloadConfig;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Mean and percentiles of a set of durations, in milliseconds; all zero for an empty set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many durations.
    pub count: usize,
    /// Arithmetic mean.
    pub mean_ms: f64,
    /// Median.
    pub p50_ms: f64,
    /// 90th percentile.
    pub p90_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Largest.
    pub max_ms: f64,
}

impl Summary {
    /// Percentiles interpolate linearly between neighbours, as numpy's do.
    #[must_use]
    pub fn of(durations: impl IntoIterator<Item = Duration>) -> Self {
        let mut ms: Vec<f64> = durations.into_iter().map(|d| d.as_secs_f64() * 1e3).collect();
        ms.sort_by(f64::total_cmp);
        let Some(&max_ms) = ms.last() else { return Self::default() };
        let percentile = |p: f64| {
            let at = p / 100.0 * (ms.len() - 1) as f64;
            let (low, high) = (ms[at.floor() as usize], ms[at.ceil() as usize]);
            low + (high - low) * at.fract()
        };
        Self {
            count: ms.len(),
            mean_ms: ms.iter().sum::<f64>() / ms.len() as f64,
            p50_ms: percentile(50.0),
            p90_ms: percentile(90.0),
            p99_ms: percentile(99.0),
            max_ms,
        }
    }
}

/// The result of a benchmark run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// What was asked for, seed included.
    pub workload: WorkloadConfig,
    /// Where: a URL, or a description of the engine.
    pub target: String,
    /// From the first request sent to the last answer's end.
    pub duration_s: f64,
    /// Requests answered in full.
    pub num_completed: usize,
    /// Requests that ended in an error.
    pub num_failed: usize,
    /// Completed requests with fewer output tokens than were asked for.
    pub num_short: usize,
    /// Prompt tokens of completed requests.
    pub prompt_tokens: usize,
    /// Output tokens of completed requests.
    pub completion_tokens: usize,
    /// Completed requests per second.
    pub requests_per_s: f64,
    /// Output tokens per second.
    pub output_tokens_per_s: f64,
    /// Prompt and output tokens per second.
    pub total_tokens_per_s: f64,
    /// Time to first token.
    pub ttft: Summary,
    /// Part of all requests whose first token came within six seconds: S-LoRA's attainment.
    pub ttft_attainment: f64,
    /// Gaps between arrivals of output, all requests together.
    pub inter_token: Summary,
    /// Per request: (last output - first output) / (output tokens - 1).
    pub time_per_output_token: Summary,
    /// From sending to the end of the answer.
    pub end_to_end: Summary,
    /// Requests sent per name.
    pub requests_per_model: BTreeMap<String, usize>,
    /// Each distinct error and how often it came.
    pub errors: BTreeMap<String, usize>,
}

/// S-LoRA's objective.
const TTFT_OBJECTIVE: Duration = Duration::from_secs(6);

/// More distinct errors than this are counted together.
const MAX_DISTINCT_ERRORS: usize = 20;

impl Report {
    /// Sums up a run. Failed requests count only in `num_failed`, `errors` and per-name counts.
    #[must_use]
    pub fn new(workload: WorkloadConfig, target: String, run: &Run) -> Self {
        let completed: Vec<_> =
            run.records.iter().filter(|record| record.error.is_none()).collect();
        let mut requests_per_model = BTreeMap::new();
        let mut errors = BTreeMap::new();
        for record in &run.records {
            *requests_per_model.entry(record.model.clone()).or_insert(0) += 1;
            if let Some(error) = &record.error {
                let is_known = errors.contains_key(error) || errors.len() < MAX_DISTINCT_ERRORS;
                let key = if is_known { error.as_str() } else { "other errors" };
                *errors.entry(key.to_owned()).or_insert(0) += 1;
            }
        }
        let duration_s = run.wall.as_secs_f64();
        let prompt_tokens = completed.iter().map(|record| record.prompt_tokens).sum();
        let completion_tokens = completed.iter().map(|record| record.completion_tokens).sum();
        let per_second =
            |count: usize| if duration_s > 0.0 { count as f64 / duration_s } else { 0.0 };
        let per_output_token = completed.iter().filter_map(|record| {
            let (first, last) = (record.ticks.first()?, record.ticks.last()?);
            let gaps = u32::try_from(record.completion_tokens.checked_sub(1)?).ok()?;
            (gaps > 0).then(|| (*last - *first) / gaps)
        });
        let is_in_time = |record: &&&RequestRecord| {
            record.ticks.first().is_some_and(|first| *first <= TTFT_OBJECTIVE)
        };
        let num_in_time = completed.iter().filter(is_in_time).count();
        Self {
            workload,
            target,
            duration_s,
            num_completed: completed.len(),
            num_failed: run.records.len() - completed.len(),
            num_short: completed
                .iter()
                .filter(|record| record.completion_tokens < record.requested_tokens)
                .count(),
            prompt_tokens,
            completion_tokens,
            requests_per_s: per_second(completed.len()),
            output_tokens_per_s: per_second(completion_tokens),
            total_tokens_per_s: per_second(prompt_tokens + completion_tokens),
            ttft: Summary::of(completed.iter().filter_map(|r| r.ticks.first().copied())),
            ttft_attainment: num_in_time as f64 / run.records.len().max(1) as f64,
            inter_token: Summary::of(
                completed.iter().flat_map(|r| r.ticks.windows(2).map(|pair| pair[1] - pair[0])),
            ),
            time_per_output_token: Summary::of(per_output_token),
            end_to_end: Summary::of(completed.iter().map(|record| record.latency)),
            requests_per_model,
            errors,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let workload = &self.workload;
        writeln!(f, "{}", self.target)?;
        let whom = match workload.adapters.len() {
            0 => "base only".to_owned(),
            1 => "1 adapter".to_owned(),
            num_adapters => format!("{num_adapters} adapters ({})", workload.popularity),
        };
        writeln!(
            f,
            "  {} requests, {} in / {} out tokens, {whom}, {}, seed {}",
            workload.num_requests,
            workload.input_len,
            workload.output_len,
            workload.arrivals,
            workload.seed,
        )?;
        writeln!(
            f,
            "  {} completed, {} failed, {} shorter than asked, in {:.2} s\n",
            self.num_completed, self.num_failed, self.num_short, self.duration_s
        )?;
        writeln!(f, "  {:<24}{:>12.2}", "output tokens/s", self.output_tokens_per_s)?;
        writeln!(f, "  {:<24}{:>12.2}", "total tokens/s", self.total_tokens_per_s)?;
        writeln!(f, "  {:<24}{:>12.3}", "requests/s", self.requests_per_s)?;
        writeln!(f, "  {:<24}{:>12.3}\n", "first token within 6 s", self.ttft_attainment)?;
        writeln!(
            f,
            "  {:<24}{:>12}{:>12}{:>12}{:>12}{:>12}",
            "milliseconds", "mean", "p50", "p90", "p99", "max"
        )?;
        for (name, summary) in [
            ("time to first token", self.ttft),
            ("inter-token latency", self.inter_token),
            ("time per output token", self.time_per_output_token),
            ("end to end", self.end_to_end),
        ] {
            let Summary { mean_ms, p50_ms, p90_ms, p99_ms, max_ms, .. } = summary;
            writeln!(
                f,
                "  {name:<24}{mean_ms:>12.2}{p50_ms:>12.2}{p90_ms:>12.2}{p99_ms:>12.2}{max_ms:>12.2}"
            )?;
        }
        if self.requests_per_model.len() > 1 {
            let mut counts: Vec<_> = self.requests_per_model.iter().collect();
            counts.sort_by_key(|&(name, &count)| (std::cmp::Reverse(count), name));
            write!(f, "\n  requests per model:")?;
            for (name, count) in counts.iter().take(12) {
                write!(f, " {name} {count},")?;
            }
            writeln!(f, " {} in all", counts.len())?;
        }
        for (error, count) in &self.errors {
            writeln!(f, "  error x{count}: {error}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::tests::small;

    fn ms(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    fn record(index: usize, ticks: &[u64], tokens: usize) -> RequestRecord {
        RequestRecord {
            index,
            model: format!("a{}", index % 2),
            sent_at: Duration::from_millis(100 * index as u64),
            ticks: ms(ticks),
            latency: Duration::from_millis(ticks.last().copied().unwrap_or(5)),
            prompt_tokens: 16,
            completion_tokens: tokens,
            requested_tokens: 4,
            error: None,
        }
    }

    #[test]
    fn percentiles_interpolate_between_neighbours() {
        let summary = Summary::of(ms(&[40, 10, 30, 20]));
        assert_eq!((summary.count, summary.mean_ms, summary.max_ms), (4, 25.0, 40.0));
        assert!((summary.p50_ms - 25.0).abs() < 1e-9);
        assert!((summary.p90_ms - 37.0).abs() < 1e-9);
        assert_eq!(Summary::of([]), Summary::default());
    }

    #[test]
    fn rates_and_gaps_count_completed_requests_only() {
        let mut failed = record(2, &[50, 51], 2);
        failed.error = Some("boom".into());
        // The second answer came as two pieces of two tokens each.
        let records = vec![record(0, &[20, 30, 40, 60], 4), record(1, &[10, 50], 4), failed];
        let run = Run { records, wall: Duration::from_millis(500) };
        let report = Report::new(small(), "test".into(), &run);
        assert_eq!((report.num_completed, report.num_failed, report.num_short), (2, 1, 0));
        assert!((report.output_tokens_per_s - 16.0).abs() < 1e-9);
        assert!((report.total_tokens_per_s - 80.0).abs() < 1e-9);
        assert!((report.requests_per_s - 4.0).abs() < 1e-9);
        assert!((report.ttft.mean_ms - 15.0).abs() < 1e-9);
        assert!((report.ttft_attainment - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(report.inter_token.count, 4);
        assert!((report.inter_token.mean_ms - 20.0).abs() < 1e-9);
        assert!((report.time_per_output_token.max_ms - 40.0 / 3.0).abs() < 1e-3);
        assert_eq!(report.requests_per_model["a0"], 2);
        assert_eq!(report.errors["boom"], 1);
    }

    #[test]
    fn a_short_answer_is_counted_as_short() {
        let run = Run { records: vec![record(0, &[5], 1)], wall: Duration::from_secs(1) };
        let report = Report::new(small(), "test".into(), &run);
        assert_eq!(report.num_short, 1);
        assert_eq!(report.time_per_output_token.count, 0);
    }

    #[test]
    fn the_table_shows_rates_percentiles_and_errors() {
        let mut failed = record(1, &[], 0);
        failed.error = Some("boom".into());
        let run = Run {
            records: vec![record(0, &[20, 30, 40, 60], 4), failed],
            wall: Duration::from_secs(1),
        };
        let table = Report::new(small(), "test".into(), &run).to_string();
        for part in [
            "output tokens/s",
            "4.00",
            "time to first token",
            "p99",
            "error x1: boom",
            "3 adapters (distinct)",
        ] {
            assert!(table.contains(part), "{part} is missing in:\n{table}");
        }
    }
}
