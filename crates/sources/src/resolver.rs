//! Where a name that nobody loaded is looked for. In: rules `NAMES=SOURCE` of the operator and a
//! name. Out: a URI, for names that a rule covers. Asks nobody.
//!
//! `acme/*=hf://acme/{name}`: the one `*` stands for one part of a name, which is letters, digits and
//! `._+-`; `{name}` is what it stood for, `{model}` the whole name with its slashes. A name that a
//! rule does not cover is never looked for.

use crate::location::{Location, LocationError};

/// A rule of `--adapter-resolver`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolverRule {
    /// What stands before and after the `*`; `None` after it if the name is fixed.
    before: String,
    after: Option<String>,
    target: String,
}

/// Why a rule is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No `=`, or nothing beside it.
    #[error("write NAMES=SOURCE, for example acme/*=hf://acme/{{name}}")]
    Form,
    /// More than one `*`.
    #[error("one `*` at most, which stands for one part of a name")]
    Stars,
    /// `{name}` without `*`, or the reverse.
    #[error("a `*` before the = needs {{name}} or {{model}} after it, and the reverse")]
    Unused,
    /// A path.
    #[error("{0} is on this machine: --adapter-dir finds adapters there")]
    Local(String),
    /// No source.
    #[error(transparent)]
    Location(#[from] LocationError),
}

impl ResolverRule {
    /// Reads `NAMES=SOURCE`.
    ///
    /// # Errors
    /// [`RuleError`], a sentence with what to write.
    pub fn parse(given: &str) -> Result<Self, RuleError> {
        let (names, target) = given.split_once('=').ok_or(RuleError::Form)?;
        if names.is_empty() || target.is_empty() {
            return Err(RuleError::Form);
        }
        let (before, after) = match names.split_once('*') {
            Some((_, after)) if after.contains('*') => return Err(RuleError::Stars),
            Some((before, after)) => (before, Some(after.to_owned())),
            None => (names, None),
        };
        if after.is_some() != (target.contains("{name}") || target.contains("{model}")) {
            return Err(RuleError::Unused);
        }
        let rule = Self { before: before.to_owned(), after, target: target.to_owned() };
        let model = format!("{}x{}", rule.before, rule.after.as_deref().unwrap_or_default());
        let sample = rule.expand("x", &model);
        if !Location::parse(&sample)?.is_remote() {
            return Err(RuleError::Local(target.to_owned()));
        }
        Ok(rule)
    }

    /// Where `name` would be; `None` if the rule does not cover it.
    #[must_use]
    pub fn resolve(&self, name: &str) -> Option<String> {
        let Some(after) = &self.after else {
            return (name == self.before).then(|| self.target.clone());
        };
        let part = name.strip_prefix(&self.before)?.strip_suffix(after.as_str())?;
        let is_plain = part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte))
            && !part.contains("..");
        if !is_plain {
            return None;
        }
        let uri = self.expand(part, name);
        // The rest of the name may still be none that this source can have.
        Location::parse(&uri).ok().map(|location| location.to_string())
    }

    fn expand(&self, part: &str, model: &str) -> String {
        self.target.replace("{name}", part).replace("{model}", model)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolve(rule: &str, name: &str) -> Option<String> {
        ResolverRule::parse(rule).unwrap().resolve(name)
    }

    #[test]
    fn names_become_uris() {
        for (rule, name, uri) in [
            ("acme/*=hf://acme/{name}", "acme/sql", "hf://acme/sql"),
            ("acme/*=hf://{model}", "acme/sql", "hf://acme/sql"),
            ("*-lora=s3://b/loras/{name}", "sql-lora", "s3://b/loras/sql"),
            ("sql=hf://acme/sql@v2", "sql", "hf://acme/sql@v2"),
            ("x/*=https://h/{name}", "x/a+b.c", "https://h/a+b.c/"),
        ] {
            assert_eq!(resolve(rule, name).as_deref(), Some(uri), "{rule} {name}");
        }
    }

    #[test]
    fn a_star_is_one_part_and_nothing_that_a_uri_would_read_differently() {
        let rule = "acme/*=hf://acme/{name}";
        for name in [
            "acme/",
            "acme/a/b",
            "other/sql",
            "acme/a@v1",
            "acme/..",
            "acme/.a",
            "acme/a..b",
            "acme/a:b",
        ] {
            assert_eq!(resolve(rule, name), None, "{name}");
        }
        assert_eq!(resolve("a*a=hf://x/{name}", "a"), None);
        assert_eq!(resolve("sql=hf://acme/sql", "sql2"), None);
    }

    #[test]
    fn rules_that_cannot_work_are_refused_with_a_sentence() {
        for (rule, words) in [
            ("acme/*", "NAMES=SOURCE"),
            ("=hf://a/b", "NAMES=SOURCE"),
            ("*/*=hf://{model}", "one `*`"),
            ("acme/*=hf://acme/sql", "{name}"),
            ("sql=hf://acme/{name}", "{name}"),
            ("*=/srv/{name}", "--adapter-dir"),
            ("*=hf://{name}", "hf://org/name"),
        ] {
            let said = ResolverRule::parse(rule).unwrap_err().to_string();
            assert!(said.contains(words), "{rule}: {said}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leaves_the_place_that_the_rule_names(name in "acme/[ -~]{0,20}") {
            for (rule, start) in [
                ("acme/*=hf://acme/{name}", "hf://acme/"),
                ("acme/*=s3://bucket/team/{name}", "s3://bucket/team/"),
                ("acme/*=https://h/team/{name}", "https://h/team/"),
            ] {
                if let Some(uri) = resolve(rule, &name) {
                    let rest = uri.strip_prefix(start).unwrap().trim_end_matches('/');
                    prop_assert!(!rest.contains('/') && !rest.is_empty(), "{}", uri);
                }
            }
        }
    }
}
