//! `weft adapter ls`. In: a running server's `/v1/adapters`. Out: a table.

use crate::args::AdapterLsArgs;
use crate::size::ByteSize;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Asks the server.
///
/// # Errors
/// If it does not answer, or is no Weft.
pub async fn fetch(args: &AdapterLsArgs) -> Result<Value> {
    let url = format!("{}/v1/adapters", args.url.trim_end_matches('/'));
    let asking = || format!("asking {url}; is a server running there?");
    let response = reqwest::get(&url).await.with_context(asking)?;
    let status = response.status();
    ensure!(status.is_success(), "{url} answered {status}; is it a Weft server?");
    response.json().await.with_context(asking)
}

/// Seconds since 1970.
#[must_use]
pub fn now_unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// How long something was ago, in the largest unit of which it is at least one.
fn ago(seconds: u64) -> String {
    let units = [(86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    unit.map_or_else(
        || "now".to_owned(),
        |(length, unit)| format!("{} {unit} ago", seconds / length),
    )
}

/// The answer, for people; `now_unix` in seconds.
#[must_use]
pub fn table(list: &Value, now_unix: u64) -> String {
    let empty = Vec::new();
    let adapters = list["data"].as_array().unwrap_or(&empty);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let width = adapters.iter().map(|one| text(&one["name"]).chars().count()).max().unwrap_or(0);
    let width = width.max("name".len());
    let mut out = format!(
        "{:width$}  {:7}{:>6}{:>11}{:>8}{:>8}{:>11}  {:3}\n",
        "name", "tier", "rank", "size", "hits", "leases", "last used", "pin"
    );
    for adapter in adapters {
        let number = |key: &str| adapter[key].as_u64();
        let rank = number("rank").map_or_else(|| "?".to_owned(), |rank| rank.to_string());
        let size = number("bytes").filter(|&bytes| bytes > 0);
        let size = size.map_or_else(|| "?".to_owned(), |bytes| ByteSize(bytes).to_string());
        let used = number("last_used").map(|unix| ago(now_unix.saturating_sub(unix)));
        let used = used.unwrap_or_else(|| "never".to_owned());
        let pin = if adapter["pinned"] == true { "yes" } else { "" };
        let _ = writeln!(
            out,
            "{:width$}  {:7}{rank:>6}{size:>11}{:>8}{:>8}{used:>11}  {pin:3}",
            text(&adapter["name"]),
            text(&adapter["tier"]),
            number("hits").unwrap_or(0),
            number("leases").unwrap_or(0),
        );
    }
    let pool = &list["pool"];
    let chunks = |key: &str| pool[key].as_u64().unwrap_or(0);
    let bytes = |key: &str| ByteSize(chunks(key) * chunks("chunk_bytes"));
    let _ = writeln!(
        out,
        "\ndevice memory {}: KV {}, prefixes {}, adapters in use {}, idle adapters {}, free {}",
        bytes("chunks"),
        bytes("kv"),
        bytes("prefix"),
        bytes("adapters"),
        bytes("idle_adapters"),
        bytes("free"),
    );
    let host = &list["host_memory"];
    let used = ByteSize(host["used"].as_u64().unwrap_or(0));
    let budget = host["budget"].as_u64().map(|budget| format!(" of {}", ByteSize(budget)));
    let _ = writeln!(out, "host memory for adapters {used}{}", budget.unwrap_or_default());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_shows_where_adapters_are_and_how_memory_is_used() {
        let list = json!({
            "data": [
                { "name": "sql", "tier": "device", "rank": 8, "bytes": 4_884_480, "hits": 3,
                  "leases": 1, "last_used": 880, "pinned": true },
                { "name": "a-longer-name", "tier": "source", "rank": null, "bytes": 0, "hits": 0,
                  "leases": 0, "last_used": null, "pinned": false },
            ],
            "pool": { "chunk_bytes": 1024, "chunks": 2048, "free": 1024, "kv": 512, "prefix": 256,
                      "adapters": 128, "idle_adapters": 128 },
            "host_memory": { "used": 4_884_480, "budget": 1_073_741_824_u64 },
        });
        let table = table(&list, 1000);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[1],
            "sql            device      8    4.7 MiB       3       1  2 min ago  yes"
        );
        let second = "a-longer-name  source      ?          ?       0       0      never";
        assert_eq!(lines[2].trim_end(), second);
        assert!(table.contains("device memory 2.0 MiB: KV 512.0 KiB"), "{table}");
        assert!(table.contains("host memory for adapters 4.7 MiB of 1.0 GiB"), "{table}");
    }
}
