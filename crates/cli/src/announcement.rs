//! What the user reads when the server is ready: where, what, how much, and a line to paste.

use crate::device::ModelFacts;
use crate::size::ByteSize;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

/// Adapters that are listed by name; of more, only the number is told.
const MAX_LISTED: usize = 16;

/// All that is told.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Where the server listens.
    pub addr: SocketAddr,
    /// From the start of the program until now.
    pub took: Duration,
    /// The base's name in requests.
    pub base: String,
    /// The base and its memory.
    pub facts: ModelFacts,
    /// Whether the base has a chat template.
    pub can_chat: bool,
    /// By name.
    pub adapters: Vec<ServedAdapter>,
}

/// One adapter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServedAdapter {
    /// Its name in requests.
    pub name: String,
    /// The largest rank, if loaded.
    pub rank: Option<usize>,
    /// Bytes in memory, if loaded.
    pub num_bytes: Option<u64>,
}

impl Announcement {
    /// Where to reach the server from this machine.
    #[must_use]
    pub fn url(&self) -> String {
        let ip = match self.addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
            ip => ip,
        };
        format!("http://{}", SocketAddr::new(ip, self.addr.port()))
    }

    fn curl(&self) -> String {
        let model = self.adapters.first().map_or(&self.base, |adapter| &adapter.name);
        let (route, question) = if self.can_chat {
            (
                "chat/completions",
                r#""messages": [{"role": "user", "content": "Tell me about the sea."}]"#,
            )
        } else {
            ("completions", r#""prompt": "The sea is""#)
        };
        format!(
            "curl {}/v1/{route} -H 'content-type: application/json' \\\n    \
             -d '{{\"model\": \"{model}\", {question}, \"max_tokens\": 64}}'",
            self.url()
        )
    }
}

impl fmt::Display for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = &self.facts;
        writeln!(f, "\nWeft serves {} after {:.1} s", self.url(), self.took.as_secs_f64())?;
        writeln!(
            f,
            "  base      {}  ({}, {}, context {})",
            self.base,
            facts.architecture,
            ByteSize(facts.weight_bytes),
            facts.max_model_len
        )?;
        writeln!(
            f,
            "  memory    {} for KV cache and adapters: at most {} tokens  ({})",
            ByteSize(facts.kv_bytes),
            facts.kv_tokens,
            facts.device
        )?;
        let width = self.adapters.iter().map(|adapter| adapter.name.len()).max().unwrap_or(0);
        for (i, adapter) in self.adapters.iter().take(MAX_LISTED).enumerate() {
            let label = if i == 0 { "adapters" } else { "" };
            write!(f, "  {label:<8}  {:<width$}", adapter.name)?;
            match (adapter.rank, adapter.num_bytes) {
                (Some(rank), Some(bytes)) => writeln!(f, "  rank {rank:>3}, {}", ByteSize(bytes))?,
                _ => writeln!(f, "  loaded when first asked for")?,
            }
        }
        if self.adapters.len() > MAX_LISTED {
            writeln!(f, "            … {} in all", self.adapters.len())?;
        }
        writeln!(f, "  stop      Ctrl-C: running requests finish first")?;
        writeln!(f, "\nTry:\n  {}", self.curl())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(addr: &str, num_adapters: usize) -> Announcement {
        Announcement {
            addr: addr.parse().unwrap(),
            took: Duration::from_millis(1234),
            base: "tiny".into(),
            facts: ModelFacts {
                architecture: "llama".into(),
                weight_bytes: 1 << 20,
                kv_bytes: 1 << 30,
                kv_tokens: 4096,
                max_model_len: 2048,
                device: "CPU".into(),
            },
            can_chat: true,
            adapters: (0..num_adapters)
                .map(|i| ServedAdapter {
                    name: format!("a{i}"),
                    rank: (i == 0).then_some(8),
                    num_bytes: (i == 0).then_some(1 << 10),
                })
                .collect(),
        }
    }

    #[test]
    fn it_says_where_what_and_how_much() {
        let text = announcement("127.0.0.1:8000", 2).to_string();
        for part in [
            "http://127.0.0.1:8000 after 1.2 s",
            "tiny  (llama, 1.0 MiB, context 2048)",
            "1.0 GiB for KV cache and adapters: at most 4096 tokens",
            "a0  rank   8, 1.0 KiB",
            "a1  loaded when first asked for",
            r#""model": "a0""#,
        ] {
            assert!(text.contains(part), "{part} is missing in:{text}");
        }
    }

    #[test]
    fn an_unspecified_address_is_told_as_one_that_works() {
        assert_eq!(announcement("0.0.0.0:9", 0).url(), "http://127.0.0.1:9");
        assert_eq!(announcement("[::]:9", 0).url(), "http://[::1]:9");
    }

    #[test]
    fn many_adapters_are_counted_and_a_base_without_template_gets_a_completion() {
        let mut many = announcement("127.0.0.1:8000", 40);
        assert!(many.to_string().contains("40 in all"));
        assert!(many.to_string().contains("chat/completions"));
        many.can_chat = false;
        assert!(many.to_string().contains("/v1/completions"));
    }
}
