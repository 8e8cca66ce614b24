//! The generators have their papers' distributions, and a seed names one trace.

use super::*;
use std::collections::HashMap;

const LOAD: SLoraLoad = SLoraLoad { alpha: 0.3, rate: 20.0, cv: 1.0, duration_s: 1000.0 };

fn s_lora(num_adapters: u32) -> SyntheticTrace {
    SyntheticTrace::s_lora(SLoraSetting::S2, num_adapters, LOAD, 42)
}

fn mean(values: impl Iterator<Item = u32>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += f64::from(value);
        count += 1.0;
    }
    sum / count
}

#[test]
fn s_loras_trace_has_its_rate_lengths_skew_and_ranks() {
    let requests: Vec<_> = s_lora(200).requests().unwrap().collect();
    assert_eq!(requests.len(), 20_000);
    let last = requests.last().unwrap().arrival_s;
    assert!((last / 1000.0 - 1.0).abs() < 0.03, "{last}");
    assert!(requests.is_sorted_by_key(|request| request.arrival_s));
    for tokens in [
        requests.iter().map(|r| r.prompt_tokens).collect::<Vec<_>>(),
        requests.iter().map(|r| r.output_tokens).collect(),
    ] {
        assert_eq!((tokens.iter().min(), tokens.iter().max()), (Some(&8), Some(&511)));
        assert!((mean(tokens.into_iter()) / 259.5 - 1.0).abs() < 0.02);
    }
    // (1/200)^0.3
    let top = requests.iter().filter(|r| r.adapter == Some(0)).count() as f64 / 20_000.0;
    assert!((top - 0.204).abs() < 0.01, "{top}");
    for request in &requests {
        let rank = [64, 32, 16, 8][request.adapter.unwrap() as usize % 4];
        assert_eq!(request.rank, Some(rank));
    }
}

#[test]
fn punicas_trace_has_its_lengths_and_numbers_of_adapters() {
    let adapters = |text: &str| {
        let trace = SyntheticTrace::punica(text.parse().unwrap(), 1000, 1);
        let mut counts = HashMap::new();
        for request in trace.requests().unwrap() {
            assert_eq!(request.arrival_s, 0.0);
            assert!(request.output_tokens >= 2);
            *counts.entry(request.adapter.unwrap()).or_insert(0_u32) += 1;
        }
        assert!(counts.keys().all(|&adapter| adapter < trace.num_adapters));
        (trace.num_adapters, counts.len())
    };
    assert_eq!(adapters("identical"), (1, 1));
    assert_eq!(adapters("distinct"), (1000, 1000));
    assert_eq!(adapters("uniform"), (32, 32));
    // 1 + 1.5 + … + 1.5^15 = 1311.
    assert_eq!(adapters("geometric:1.5").0, 16);
    let trace = SyntheticTrace::punica(Popularity::Identical, 20_000, 1);
    let prompt = mean(trace.requests().unwrap().map(|r| r.prompt_tokens));
    assert!((22.5..24.5).contains(&prompt), "{prompt}");
    let output = mean(trace.requests().unwrap().map(|r| r.output_tokens));
    assert!((980.0..1030.0).contains(&output), "{output}");
}

#[test]
fn a_seed_and_tenant_name_one_trace() {
    let first: Vec<_> = s_lora(10).requests().unwrap().take(3).collect();
    let again: Vec<_> = s_lora(10).requests().unwrap().take(3).collect();
    assert_eq!(first, again);
    let other = SyntheticTrace { seed: 43, ..s_lora(10) };
    assert_ne!(first, other.requests().unwrap().take(3).collect::<Vec<_>>());
    // More adapters change neither arrivals nor lengths.
    for (a, b) in first.iter().zip(s_lora(1000).requests().unwrap()) {
        assert_eq!((a.arrival_s, a.prompt_tokens), (b.arrival_s, b.prompt_tokens));
    }
}

#[test]
fn a_million_requests_stream_by() {
    let trace = SyntheticTrace {
        num_requests: 1_000_000,
        popularity: Popularity::Zipf(1.1),
        ..s_lora(1000)
    };
    let requests = trace.requests().unwrap();
    assert_eq!(requests.size_hint(), (1_000_000, Some(1_000_000)));
    assert_eq!(requests.count(), 1_000_000);
}

#[test]
fn a_neighbour_sends_ten_times_as_much_in_the_same_time() {
    let small = SyntheticTrace { num_requests: 500, ..s_lora(4) };
    let large = small.neighbour(10.0);
    let merged = merge(vec![small.requests().unwrap(), large.requests().unwrap()]);
    let requests: Vec<_> = merged.collect();
    assert!(requests.is_sorted_by_key(|request| request.arrival_s));
    let of = |tenant| requests.iter().filter(move |request| request.tenant == tenant);
    assert_eq!((of(0).count(), of(1).count()), (500, 5000));
    assert!(of(0).all(|request| request.adapter.unwrap() < 4));
    assert!(of(1).all(|request| (4..8).contains(&request.adapter.unwrap())));
    let end = |tenant| of(tenant).next_back().unwrap().arrival_s;
    assert!((end(0) / end(1) - 1.0).abs() < 0.2);
    // The small tenant's requests are those it sends when it is alone.
    let alone: Vec<_> = small.requests().unwrap().collect();
    assert!(of(0).eq(alone.iter()));
}

#[test]
fn contradictions_are_refused() {
    let refused = |trace: SyntheticTrace| trace.requests().unwrap_err();
    assert_eq!(refused(SyntheticTrace { num_requests: 0, ..s_lora(1) }), WorkloadError::NoRequests);
    let arrivals = Arrivals::Open { rate: f64::NAN, cv: 1.0 };
    assert_eq!(refused(SyntheticTrace { arrivals, ..s_lora(1) }), WorkloadError::Rate);
    let trace = SyntheticTrace { first_adapter: u32::MAX, ..s_lora(1) };
    assert_eq!(refused(trace), WorkloadError::TooManyAdapters);
    assert!("S7".parse::<SLoraSetting>().unwrap_err().contains("S1"));
    assert!(SLoraSetting::ALL.iter().all(|s| s.to_string().parse() == Ok(*s)));
    let base = SyntheticTrace { num_adapters: 0, ..s_lora(1) };
    assert!(base.requests().unwrap().all(|r| r.adapter.is_none() && r.rank.is_none()));
}

#[test]
fn adapters_have_their_ranks_in_turn_and_bytes_by_rank() {
    let base = BaseModelSpec {
        num_layers: 2,
        hidden_size: 8,
        intermediate_size: 12,
        num_heads: 2,
        num_kv_heads: 1,
        head_dim: 4,
        vocab_size: 32,
        max_context: 64,
        tied_embeddings: true,
    };
    let each = bytes_per_rank(&base, &[Module::Q, Module::V], Dtype::F16);
    assert_eq!(each, ((8 + 8) + (8 + 4)) * 2 * 2);
    let adapters = adapters(3, &[64, 8], Some(each));
    assert_eq!(adapters.iter().map(|a| a.rank).collect::<Vec<_>>(), [Some(64), Some(8), Some(64)]);
    assert_eq!(adapters[1].bytes, Some(8 * each));
    assert_eq!(adapters[2].name, "adapter-2");
}
