//! Events in, figures out.

use super::*;

fn request(tenant: u32, arrival_s: f64) -> TraceRequest {
    TraceRequest {
        arrival_s,
        adapter: Some(0),
        tenant,
        prompt_tokens: 10,
        output_tokens: 5,
        rank: None,
    }
}

/// Two tenants overlap for a while; the first gets three times as much then, and goes on alone.
fn recorder() -> SimRecorder {
    let mut recorder = SimRecorder::default();
    let (first, second, third) = (request(0, 0.0), request(1, 0.0), request(1, 0.5));
    recorder.arrived(&first);
    recorder.served(0, 100);
    recorder.arrived(&second);
    recorder.arrived(&third);
    recorder.served(0, 30);
    recorder.served(1, 10);
    recorder.rejected(&third);
    recorder.finished(&second, 0.1, 0.5);
    recorder.served(0, 100);
    recorder.finished(&first, 0.3, 0.7);
    recorder.token_gap(0.1, 4);
    recorder.lookups(2, 1);
    recorder.adapter_loaded(2_000_000);
    recorder.evicted(1);
    recorder.preempted(2);
    recorder.step();
    recorder
}

#[test]
fn rates_and_counts_are_of_finished_requests() {
    let report = recorder().report("test", &[], 2.0);
    assert_eq!((report.num_requests, report.num_finished, report.num_rejected), (3, 2, 1));
    assert_eq!((report.requests_per_s, report.output_tokens_per_s), (1.0, 5.0));
    assert_eq!(report.total_tokens_per_s, 15.0);
    assert_eq!((report.ttft.count, report.inter_token.count), (2, 4));
    assert!((report.ttft.mean_ms - 200.0).abs() < 1e-9);
    assert!((report.time_per_output_token.mean_ms - 100.0).abs() < 1e-9);
    assert_eq!(report.end_to_end.max_ms, 700.0);
    assert_eq!(report.adapters.hit_rate, 0.5);
    assert_eq!(
        (report.adapters.bytes_moved, report.preemptions, report.num_steps),
        (2_000_000, 2, 1)
    );
}

#[test]
fn fairness_is_measured_while_several_tenants_have_work() {
    let report = recorder().report("test", &["small".into(), String::new()], 2.0);
    // 30 and 10: 40^2 / (2 * (900 + 100))
    assert!((report.jain_fairness - 0.8).abs() < 1e-12);
    assert_eq!(report.tenants[0].contended_tokens, 30);
    assert_eq!(report.tenants[0].name, "small");
    assert_eq!(report.tenants[1].name, "(none)");
    assert_eq!(report.tenants[1].ttft.count, 1);
}

#[test]
fn jain_is_one_for_equals_and_one_over_n_for_a_monopoly() {
    assert_eq!(jain([2.0, 2.0, 2.0].into_iter()), 1.0);
    assert_eq!(jain([5.0, 0.0, 0.0, 0.0].into_iter()), 0.25);
    assert_eq!(jain(std::iter::empty()), 1.0);
}

#[test]
fn a_starved_tenant_counts() {
    let mut recorder = SimRecorder::default();
    recorder.arrived(&request(0, 0.0));
    recorder.arrived(&request(1, 0.0));
    recorder.served(0, 50);
    assert_eq!(recorder.report("test", &[], 1.0).jain_fairness, 0.5);
}

#[test]
fn nothing_happened_is_a_report_without_nonsense() {
    let report = SimRecorder::default().report("test", &[], 0.0);
    assert_eq!((report.requests_per_s, report.jain_fairness), (0.0, 1.0));
    assert_eq!(report.adapters.hit_rate, 1.0);
    assert!(serde_json::to_string(&report).unwrap().contains("\"hit_rate\":1.0"));
}

#[test]
fn the_table_shows_what_matters() {
    let table = recorder().report("S1, 1000 adapters", &["small".into()], 2.0).to_string();
    for part in ["S1, 1000 adapters", "50.00 %", "Jain fairness", "p99", "small", "tenant-1"] {
        assert!(table.contains(part), "{part} is missing in:\n{table}");
    }
}
