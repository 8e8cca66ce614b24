//! The figures of a simulation. In: what happened, event by event, in the simulator's own time.
//! Out: a [`SimReport`], which serializes to JSON and prints as a table. Memory grows with tenants,
//! never with requests.

use crate::log_histogram::LogHistogram;
use crate::report::Summary;
use crate::trace::TraceRequest;
use serde::Serialize;
use std::fmt;

/// Only this many tenants get percentiles of their own; the others are counted, and in the whole.
const MAX_TENANT_HISTOGRAMS: usize = 256;

/// Rows of the table; the JSON has all.
const MAX_TENANT_ROWS: usize = 12;

/// Collects what happens. Every request is [`Self::arrived`] first, and later either
/// [`Self::finished`] or [`Self::rejected`], or neither if the simulation stops before.
#[derive(Clone, Debug, Default)]
pub struct SimRecorder {
    num_steps: u64,
    adapters: AdapterFigures,
    preemptions: u64,
    ttft: LogHistogram,
    inter_token: LogHistogram,
    time_per_output_token: LogHistogram,
    end_to_end: LogHistogram,
    tenants: Vec<Tenant>,
    /// Tenants with requests that have arrived and not ended.
    num_busy: usize,
}

#[derive(Clone, Debug, Default)]
struct Tenant {
    arrived: u64,
    finished: u64,
    rejected: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    /// Tokens computed while another tenant had work, too.
    contended_tokens: u64,
    was_contended: bool,
    ttft: LogHistogram,
}

impl Tenant {
    fn is_busy(&self) -> bool {
        self.arrived > self.finished + self.rejected
    }
}

/// Adapters between host and device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct AdapterFigures {
    /// Requests of adapters that began to run.
    pub lookups: u64,
    /// Of these, those that did not wait for their adapter.
    pub hits: u64,
    /// `hits / lookups`; 1 without lookups.
    pub hit_rate: f64,
    /// Copies to the device.
    pub loads: u64,
    /// Bytes of these.
    pub bytes_moved: u64,
    /// Adapters that left the device for others.
    pub evictions: u64,
}

impl SimRecorder {
    /// A request is there.
    pub fn arrived(&mut self, request: &TraceRequest) {
        self.update(request.tenant, |tenant| tenant.arrived += 1);
        let is_contended = self.num_busy > 1;
        self.tenant(request.tenant).was_contended |= is_contended;
    }

    /// `tokens`, of prompt or output, were computed for a tenant: what fairness is measured by.
    pub fn served(&mut self, tenant: u32, tokens: u64) {
        let is_contended = self.num_busy > 1;
        let tenant = self.tenant(tenant);
        if is_contended {
            tenant.was_contended = true;
            tenant.contended_tokens += tokens;
        }
    }

    /// `count` sequences got a token `seconds` after their last one.
    pub fn token_gap(&mut self, seconds: f64, count: u64) {
        self.inter_token.record_n(seconds, count);
    }

    /// A request was answered in full. Times are from the start of the simulation.
    pub fn finished(&mut self, request: &TraceRequest, first_token_s: f64, finish_s: f64) {
        let ttft = first_token_s - request.arrival_s;
        self.ttft.record(ttft);
        self.end_to_end.record(finish_s - request.arrival_s);
        if request.output_tokens > 1 {
            let gaps = f64::from(request.output_tokens - 1);
            self.time_per_output_token.record((finish_s - first_token_s) / gaps);
        }
        let has_histogram = (request.tenant as usize) < MAX_TENANT_HISTOGRAMS;
        self.update(request.tenant, |tenant| {
            tenant.finished += 1;
            tenant.prompt_tokens += u64::from(request.prompt_tokens);
            tenant.output_tokens += u64::from(request.output_tokens);
            if has_histogram {
                tenant.ttft.record(ttft);
            }
        });
    }

    /// A request was refused.
    pub fn rejected(&mut self, request: &TraceRequest) {
        self.update(request.tenant, |tenant| tenant.rejected += 1);
    }

    /// So many requests of adapters began to run, and so many of those found theirs on the device.
    pub fn lookups(&mut self, lookups: u64, hits: u64) {
        self.adapters.lookups += lookups;
        self.adapters.hits += hits;
    }

    /// A copy of an adapter to the device began.
    pub fn adapter_loaded(&mut self, bytes: u64) {
        self.adapters.loads += 1;
        self.adapters.bytes_moved += bytes;
    }

    /// Adapters left the device.
    pub fn evicted(&mut self, adapters: u64) {
        self.adapters.evictions += adapters;
    }

    /// Sequences lost their blocks and will be computed again.
    pub fn preempted(&mut self, sequences: u64) {
        self.preemptions += sequences;
    }

    /// One step of the engine.
    pub fn step(&mut self) {
        self.num_steps += 1;
    }

    /// Sums up. `title` says what was simulated, `tenants` are names by index (missing ones are
    /// called by number), `simulated_s` is the simulator's own time at the end.
    #[must_use]
    pub fn report(&self, title: &str, tenants: &[String], simulated_s: f64) -> SimReport {
        let sum = |of: fn(&Tenant) -> u64| self.tenants.iter().map(of).sum::<u64>();
        let per_second =
            |count: u64| if simulated_s > 0.0 { count as f64 / simulated_s } else { 0.0 };
        let AdapterFigures { lookups, hits, .. } = self.adapters;
        let hit_rate = if lookups > 0 { hits as f64 / lookups as f64 } else { 1.0 };
        let name = |index: usize| match tenants.get(index).map(String::as_str) {
            Some("") => "(none)".to_owned(),
            Some(name) => name.to_owned(),
            None => format!("tenant-{index}"),
        };
        let contended = self.tenants.iter().filter(|tenant| tenant.was_contended);
        SimReport {
            title: title.to_owned(),
            simulated_s,
            num_steps: self.num_steps,
            num_requests: sum(|tenant| tenant.arrived),
            num_finished: sum(|tenant| tenant.finished),
            num_rejected: sum(|tenant| tenant.rejected),
            requests_per_s: per_second(sum(|tenant| tenant.finished)),
            output_tokens_per_s: per_second(sum(|tenant| tenant.output_tokens)),
            total_tokens_per_s: per_second(sum(|t| t.prompt_tokens + t.output_tokens)),
            ttft: self.ttft.summary(),
            inter_token: self.inter_token.summary(),
            time_per_output_token: self.time_per_output_token.summary(),
            end_to_end: self.end_to_end.summary(),
            adapters: AdapterFigures { hit_rate, ..self.adapters },
            preemptions: self.preemptions,
            jain_fairness: jain(contended.map(|tenant| tenant.contended_tokens as f64)),
            tenants: self
                .tenants
                .iter()
                .enumerate()
                .map(|(index, tenant)| TenantFigures {
                    name: name(index),
                    num_requests: tenant.arrived,
                    num_finished: tenant.finished,
                    num_rejected: tenant.rejected,
                    prompt_tokens: tenant.prompt_tokens,
                    output_tokens: tenant.output_tokens,
                    contended_tokens: tenant.contended_tokens,
                    ttft: tenant.ttft.summary(),
                })
                .collect(),
        }
    }

    /// Changes a tenant's counts, and counts anew who is busy.
    fn update(&mut self, index: u32, change: impl FnOnce(&mut Tenant)) {
        let tenant = self.tenant(index);
        let was_busy = tenant.is_busy();
        change(tenant);
        let is_busy = tenant.is_busy();
        self.num_busy = self.num_busy + usize::from(is_busy) - usize::from(was_busy);
    }

    fn tenant(&mut self, index: u32) -> &mut Tenant {
        let index = index as usize;
        if index >= self.tenants.len() {
            self.tenants.resize_with(index + 1, Tenant::default);
        }
        &mut self.tenants[index]
    }
}

/// Jain's index of fairness: `(Σx)² / (n Σx²)`, 1 if all are equal, `1/n` if one has everything.
#[must_use]
pub fn jain(shares: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut squares, mut n) = (0.0, 0.0, 0.0);
    for share in shares {
        sum += share;
        squares += share * share;
        n += 1.0;
    }
    if squares > 0.0 { sum * sum / (n * squares) } else { 1.0 }
}

/// What became of one tenant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TenantFigures {
    /// As the trace calls it.
    pub name: String,
    /// Requests that arrived.
    pub num_requests: u64,
    /// Answered in full.
    pub num_finished: u64,
    /// Refused.
    pub num_rejected: u64,
    /// Of finished requests.
    pub prompt_tokens: u64,
    /// Of finished requests.
    pub output_tokens: u64,
    /// Tokens computed while another tenant had work, too.
    pub contended_tokens: u64,
    /// Time to first token; empty beyond the first 256 tenants.
    pub ttft: Summary,
}

/// The result of a simulation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SimReport {
    /// What was simulated.
    pub title: String,
    /// The simulator's own time at the end.
    pub simulated_s: f64,
    /// Steps of the engine.
    pub num_steps: u64,
    /// Requests that arrived.
    pub num_requests: u64,
    /// Answered in full.
    pub num_finished: u64,
    /// Refused.
    pub num_rejected: u64,
    /// Finished requests per second.
    pub requests_per_s: f64,
    /// Output tokens of finished requests per second.
    pub output_tokens_per_s: f64,
    /// Prompt and output tokens of finished requests per second.
    pub total_tokens_per_s: f64,
    /// Time to first token.
    pub ttft: Summary,
    /// Gaps between tokens, all requests together.
    pub inter_token: Summary,
    /// Per request: (last token - first token) / (output tokens - 1).
    pub time_per_output_token: Summary,
    /// From arrival to the last token.
    pub end_to_end: Summary,
    /// Adapters between host and device.
    pub adapters: AdapterFigures,
    /// Sequences that lost their blocks.
    pub preemptions: u64,
    /// Jain's index over the tokens that tenants got while several had work. A tenant that asks
    /// for little gets little, so 1 is reached only among tenants that all want more.
    pub jain_fairness: f64,
    /// One per tenant.
    pub tenants: Vec<TenantFigures>,
}

impl fmt::Display for SimReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { title, num_requests, num_finished, num_rejected, .. } = self;
        writeln!(f, "{title}")?;
        writeln!(
            f,
            "  {num_requests} requests, {num_finished} finished, {num_rejected} rejected, \
             {} steps in {:.2} simulated s\n",
            self.num_steps, self.simulated_s
        )?;
        let adapters = &self.adapters;
        for (name, value) in [
            ("requests/s", format!("{:.3}", self.requests_per_s)),
            ("output tokens/s", format!("{:.2}", self.output_tokens_per_s)),
            ("total tokens/s", format!("{:.2}", self.total_tokens_per_s)),
            ("adapter hit rate", format!("{:.2} %", 100.0 * adapters.hit_rate)),
            ("adapter loads", adapters.loads.to_string()),
            ("MB moved", format!("{:.1}", adapters.bytes_moved as f64 / 1e6)),
            ("adapter evictions", adapters.evictions.to_string()),
            ("preemptions", self.preemptions.to_string()),
            ("Jain fairness", format!("{:.4}", self.jain_fairness)),
        ] {
            writeln!(f, "  {name:<24}{value:>12}")?;
        }
        let head = ["mean", "p50", "p90", "p99", "max"].map(|name| format!("{name:>12}")).concat();
        writeln!(f, "\n  {:<24}{head}", "milliseconds")?;
        for (name, summary) in [
            ("time to first token", &self.ttft),
            ("inter-token latency", &self.inter_token),
            ("time per output token", &self.time_per_output_token),
            ("end to end", &self.end_to_end),
        ] {
            figures(f, name, summary)?;
            writeln!(f)?;
        }
        if self.tenants.len() > 1 {
            writeln!(f, "\n  {:<24}{head}{:>12}", "first token by tenant", "requests")?;
            for tenant in self.tenants.iter().take(MAX_TENANT_ROWS) {
                let text = format!("{:.24}", tenant.name);
                figures(f, &text, &tenant.ttft)?;
                writeln!(f, "{:>12}", tenant.num_requests)?;
            }
            if self.tenants.len() > MAX_TENANT_ROWS {
                writeln!(f, "  … {} tenants in all", self.tenants.len())?;
            }
        }
        Ok(())
    }
}

fn figures(f: &mut fmt::Formatter<'_>, name: &str, summary: &Summary) -> fmt::Result {
    let Summary { mean_ms, p50_ms, p90_ms, p99_ms, max_ms, .. } = summary;
    write!(f, "  {name:<24}{mean_ms:>12.2}{p50_ms:>12.2}{p90_ms:>12.2}{p99_ms:>12.2}{max_ms:>12.2}")
}

#[cfg(test)]
mod tests;
